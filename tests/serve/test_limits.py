"""Keys, sizes, and how many at a time."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time

import pytest

from raylaunch.config import LaunchConfig, ServeConfig
from raylaunch.errors import EngineBusy
from raylaunch.serve import build_app, limits
from tests.serve.asgi import Exchange

KEY = "sk-very-secret"


def test_everything_but_what_probes_ask_needs_the_key(client_with):
    client = client_with(api_key=KEY)
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    for path in ("/health_generate", "/metrics", "/v1/models", "/status.json", "/openapi.json", "/nope"):
        answer = client.get(path)
        assert (path, answer.status_code) == (path, 401)
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header", ["", KEY, f"Basic {KEY}", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \xe9"]
)
def test_wrong_keys(client_with, engine, header):
    client = client_with(api_key=KEY)
    answer = client.post("/generate", content=b"{", headers={"authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    assert engine.asked_for == []


def test_the_key_opens(client_with, caplog):
    client = client_with(api_key=KEY)
    with caplog.at_level(logging.DEBUG):
        answer = client.post("/generate", json={"text": "1+1="}, headers={"authorization": f"bearer {KEY}"})
    assert answer.json()["text"] == "2"
    assert KEY not in caplog.text + client.get("/server_info", headers={"authorization": f"Bearer {KEY}"}).text


@pytest.mark.parametrize("declared", [True, False])
def test_large_bodies(client_with, engine, declared):
    client = client_with(max_body_bytes=1000)
    body = b'{"text":"' + b"1" * 2000 + b'"}'
    content = body if declared else iter([body[:600], body[600:]])
    answer = client.post("/generate", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert "1000 bytes (serve.max_body_bytes)" in answer.json()["error"]["message"]
    assert engine.asked_for == []


@pytest.mark.parametrize("length", ["-1", "many", "9" * 40])
def test_nonsense_lengths(client, length):
    assert client.post("/generate", content=b"{}", headers={"content-length": length}).status_code == 413


def test_a_body_that_does_not_come(engine, monkeypatch):
    monkeypatch.setattr(limits, "BODY_S", 0.05)

    async def ask():
        exchange = Exchange(build_app(engine, ServeConfig()), "/generate", b'{"text":', complete=False)
        await asyncio.wait_for(exchange.run(), 5)
        return exchange

    exchange = asyncio.run(ask())
    assert exchange.status == 408


class Dripping(Exchange):
    """Its body comes in pieces, each after 50 ms, with whether there are more."""

    def __init__(self, engine, pieces):
        super().__init__(build_app(engine, ServeConfig()), "/generate")
        self.pieces, self.received = iter(pieces), 0

    async def _receive(self):
        self.received += 1
        await asyncio.sleep(0.05)
        body, more = next(self.pieces)
        return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_that_comes_byte_by_byte_is_not_waited_for(engine, monkeypatch):
    monkeypatch.setattr(limits, "BODY_S", 0.2)
    exchange = Dripping(engine, itertools.repeat((b" ", True)))
    asyncio.run(asyncio.wait_for(exchange.run(), 5))
    assert (exchange.status, exchange.received <= 5) == (408, True)


def test_a_large_body_that_comes_slowly_and_steadily_is_taken(engine, monkeypatch):
    monkeypatch.setattr(limits, "BODY_S", 0.2)
    exchange = Dripping(engine, [*[(b" " * limits.SLOWEST, True)] * 9, (b'{"text":"1+1="}', False)])
    asyncio.run(asyncio.wait_for(exchange.run(), 5))
    assert exchange.status == 200


def test_too_many_at_once(engine):
    """The first waits for the engine; the second is refused; when the first has ended, a third is answered."""

    async def ask():
        app = build_app(engine, ServeConfig(max_concurrent=1))
        engine.gate.clear()
        first = Exchange(app, "/generate", b'{"text":"1+1="}')
        running = asyncio.create_task(first.run())
        while not engine.running:
            await asyncio.sleep(0.01)
        second = await Exchange(app, "/v1/completions", b'{"prompt":"1+1="}').run()
        health = await Exchange(app, "/health", method="GET").run()
        engine.gate.set()
        await running
        third = await Exchange(app, "/generate", b'{"text":"1+1="}').run()
        return [one.status for one in (first, second, health, third)], second

    statuses, second = asyncio.run(ask())
    assert statuses == [200, 429, 200, 200]
    assert second.headers["retry-after"] == "1"
    assert "1 requests are being answered already (serve.max_concurrent)" in second.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "given", "limit"),
    [("reference", None, 256), ("reference", 7, 7), ("sglang", None, None), ("sglang", 7, 7)],
)
def test_sglang_queues_as_many_as_come_unless_it_is_told(kind, given, limit):
    config = LaunchConfig.default([f"engine.kind={kind}"])
    assert limits.max_concurrent(config, ServeConfig(max_concurrent=given)) == limit


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue(client, engine, stream):
    engine.failure = EngineBusy("1056 requests are running or waiting already; try again later")
    answer = client.post("/v1/completions", json={"prompt": "1+1=", "stream": stream})
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "engine_busy"


def test_a_long_text_is_refused_quickly(client_with):
    client = client_with()
    began = time.monotonic()
    assert client.post("/generate", json={"text": "1" * 1_000_000}).status_code == 400
    assert time.monotonic() - began < 20


def test_answers_are_counted_by_path_and_status_whoever_gives_them(client_with):
    client = client_with(api_key=KEY, max_body_bytes=1000)
    key = {"authorization": f"Bearer {KEY}"}
    client.post("/generate", json={"text": "1+1="}, headers=key)
    client.post("/generate", json={"text": "1" * 2000}, headers=key)
    client.post("/generate", json={"text": "1+1="})
    client.get("/health")
    client.get("/whatever/a/client/asks/for", headers=key)
    seen = client.get("/raylaunch/metrics", headers=key).text
    for path, code in (("/generate", 200), ("/generate", 413), ("/generate", 401), ("other", 200), ("other", 404)):
        assert f'raylaunch_responses_total{{code="{code}",path="{path}"}} 1.0' in seen


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": ["1"] * 200_000}, "prompt"),
        ("/generate", {"text": ["1"] * 200_000}, "text"),
        ("/tokenize", {"prompt": ["1"] * 200_000}, "prompt"),
        ("/detokenize", {"tokens": [[1]] * 200_000}, "tokens"),
        ("/v1/completions", {"prompt": "1", "logit_bias": {str(i): "a" for i in range(100_000)}}, "logit_bias"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}] * 4000}, "messages.0.content"),
        ("/v1/completions", {"prompt": [[1] * 50] * 600, "echo": True, "logprobs": 20}, "logprobs"),
    ],
)
def test_what_is_refused_costs_others_next_to_nothing(client, engine, monkeypatch, path, body, param):
    calls = []
    tokenizer = type(engine.tokenizer)
    monkeypatch.setattr(tokenizer, "__call__", lambda *given, **more: calls.append(given) or {"input_ids": [1]})
    monkeypatch.setattr(tokenizer, "decode", lambda *given, **more: calls.append(given) or "1")
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert engine.asked_for == calls == []


def test_many_texts_are_tokenized_beside_the_event_loop(client, engine, monkeypatch):
    threads = set()
    tokenizer = type(engine.tokenizer)
    tokenize = tokenizer.__call__

    def noted(*given, **more):
        threads.add(threading.current_thread().name)
        return tokenize(*given, **more)

    monkeypatch.setattr(tokenizer, "__call__", noted)
    assert client.post("/tokenize", json={"prompt": ["1+1="] * 1000}).json()["count"] == [4] * 1000
    assert threads
    assert [name for name in threads if not name.startswith("raylaunch-tokenizer")] == []
