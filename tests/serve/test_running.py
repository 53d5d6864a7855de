"""Requests that meet a lost group, a client that left, an abort; and what their observers are told."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from raylaunch.config import ServeConfig
from raylaunch.engine.health import Condition
from raylaunch.errors import RequestError, RequestFailed
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.serve import build_app
from raylaunch.serve.running import Call, GroupUnavailable, Serving, run, run_all
from tests.serve.asgi import Exchange
from tests.serve.conftest import events_of


class Diary:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, endpoint: str, prompt_tokens: int) -> None:
        self.lines.append(f"started {endpoint} {prompt_tokens}")

    def first_token(self) -> None:
        self.lines.append("first")

    def tokens(self, count: int) -> None:
        self.lines.append(f"tokens {count}")

    def finished(self, reason: str) -> None:
        self.lines.append(f"finished {reason}")


def call_of(engine, text="12+30=", index=0):
    return Call(index, engine.tokenizer(text)["input_ids"], SamplingParams(), f"r{index}", "r")


def serving_of(engine, diary=None):
    return Serving(engine, ServeConfig(), lambda: diary or Diary(), 0)


async def collected(stream):
    return [chunk async for chunk in stream]


def test_what_an_observer_is_told(engine):
    diary = Diary()
    asyncio.run(collected(run(serving_of(engine, diary), "generate", call_of(engine))))
    assert diary.lines == ["started generate 6", "first", "tokens 1", "tokens 1", "finished stop"]


@pytest.mark.parametrize(
    ("error", "lines"),
    [(RequestError("no"), ["finished refused"]), (RequestFailed("boom"), ["finished error"])],
)
def test_errors_are_observed(engine, error, lines):
    diary = Diary()
    engine.failure = error
    with pytest.raises(type(error)):
        asyncio.run(collected(run(serving_of(engine, diary), "chat", call_of(engine))))
    assert diary.lines[1:] == lines


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("texts", ["12+30=", ["12+30=", "1+1="]])
def test_a_client_that_leaves_frees_its_request(engine, path, stream, texts):
    async def ask():
        app = build_app(engine, ServeConfig())
        engine.gate.clear()
        key = "text" if path == "/generate" else "prompt"
        exchange = Exchange(app, path, json.dumps({key: texts, "stream": stream}).encode())
        running = asyncio.create_task(exchange.run())
        while len(engine.running) < (1 if isinstance(texts, str) else 2):
            await asyncio.sleep(0.01)
        exchange.gone.set()
        await asyncio.wait_for(running, 5)
        return app

    app = asyncio.run(ask())
    assert engine.running == set()
    assert engine.left_early == (1 if isinstance(texts, str) else 2)
    assert app.state.serving.running == set()


def test_a_client_that_leaves_in_the_middle_of_a_stream(engine):
    async def ask():
        exchange = Exchange(build_app(engine, ServeConfig()), "/generate", b'{"text":"12+30=","stream":true}')
        running = asyncio.create_task(exchange.run())
        await exchange.arrived.wait()
        engine.gate.clear()
        exchange.gone.set()
        await asyncio.wait_for(running, 5)
        return exchange

    exchange = asyncio.run(ask())
    assert not exchange.ended
    assert (engine.running, engine.left_early) == (set(), 1)


def test_one_failure_ends_the_other_choices(engine):
    async def ask():
        engine.failure, engine.fails_at = RequestFailed("boom"), 1
        calls = [call_of(engine, index=index) for index in range(3)]
        with pytest.raises(RequestFailed, match="boom"):
            await collected(run_all(serving_of(engine), "generate", calls))

    asyncio.run(ask())
    assert (engine.running, engine.left_early) == (set(), 3)


@pytest.mark.parametrize("target", [{"rid": "mine"}, {"abort_all": True}, {"rid": "mine_1"}])
def test_abort(engine, target):
    async def ask():
        app = build_app(engine, ServeConfig())
        engine.gate.clear()
        exchange = Exchange(app, "/generate", b'{"text":["12+30=","1+1="],"rid":["mine","mine_1"]}')
        running = asyncio.create_task(exchange.run())
        while len(engine.running) < 2:
            await asyncio.sleep(0.01)
        assert (await Exchange(app, "/abort_request", json.dumps(target).encode()).run()).status == 200
        engine.gate.set()
        await running
        return [answer["meta_info"]["finish_reason"]["type"] for answer in exchange.json()]

    expected = {"mine": ["abort", "stop"], "mine_1": ["stop", "abort"], None: ["abort", "abort"]}
    assert asyncio.run(ask()) == expected[target.get("rid")]


def test_an_id_that_is_refused_as_in_use_does_not_keep_its_request_from_an_abort(engine):
    original = engine.astream

    async def refusing(*arguments, request_id):
        if request_id in engine.running:
            raise RequestError(f"request id {request_id!r} is in use by a running request")
        async for chunk in original(*arguments, request_id=request_id):
            yield chunk

    async def ask():
        app, body = build_app(engine, ServeConfig()), b'{"text":"12+30=","rid":"mine"}'
        engine.astream = refusing
        engine.gate.clear()
        first = Exchange(app, "/generate", body)
        running = asyncio.create_task(first.run())
        while not engine.running:
            await asyncio.sleep(0.01)
        assert (await Exchange(app, "/generate", body).run()).status == 400
        assert (await Exchange(app, "/abort_request", b'{"rid":"mine"}').run()).status == 200
        engine.gate.set()
        await running
        return first.json()["meta_info"]["finish_reason"]["type"]

    assert asyncio.run(ask()) == "abort"


# ---- a group that is lost


def rebuilding(engine):
    engine.now = replace(engine.now, ready=False, condition=Condition.REBUILDING, reason="rank 1 died")


def test_a_request_while_rebuilding_fails_at_once(client, engine):
    rebuilding(engine)
    answer = client.post("/v1/completions", json={"prompt": "1+1="})
    assert answer.status_code == 503
    assert answer.json()["error"] == {
        "message": "the engine is not ready: rank 1 died",
        "type": "service_unavailable_error",
        "param": None,
        "code": "engine_unavailable",
    }
    assert client.get("/ready").status_code == client.get("/health_generate").status_code == 503


class Losing:
    """Loses the group before a given token of the next answer."""

    def __init__(self, engine, at):
        engine.failure, engine.fails_at = RequestFailed("rank 1 died"), at
        original = engine.astream

        async def losing(*arguments, **named):
            stream = original(*arguments, **named)
            try:
                async for chunk in stream:
                    yield chunk
            except RequestFailed:
                rebuilding(engine)
                raise

        engine.astream = losing


def test_a_request_that_was_lost_is_unavailable(engine):
    Losing(engine, at=1)
    with pytest.raises(GroupUnavailable, match="rank 1 died"):
        asyncio.run(collected(run(serving_of(engine), "generate", call_of(engine))))
    assert len(engine.asked_for) == 1


def test_a_stream_that_breaks_off_says_why(client, engine):
    Losing(engine, at=1)
    events = events_of(client.post("/v1/completions", json={"prompt": "12+30=", "stream": True}).text)
    assert events[0]["choices"][0]["text"] == "4"
    assert events[1]["error"]["code"] == "engine_unavailable"


def test_a_request_that_fails_by_itself_is_a_500_without_a_traceback(client, engine):
    engine.failure = RequestFailed("request r: the logits are not finite")
    answer = client.post("/generate", json={"text": "1+1="})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "request r: the logits are not finite"


def test_a_defect_is_a_500_without_a_traceback(client, engine):
    engine.failure = ZeroDivisionError("secret")
    answer = client.post("/generate", json={"text": "1+1="})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["code"] == "internal_error"


def test_health_generate_counts_the_tokens_of_others(engine):
    """The health request waits behind a long queue, and the ranks are well."""

    async def ask():
        app = build_app(engine, ServeConfig())
        engine.gate.clear()
        exchange = Exchange(app, "/health_generate", method="GET")
        running = asyncio.create_task(exchange.run())
        while not engine.running:
            await asyncio.sleep(0.01)
        assert not running.done()
        app.state.serving.pulse.at = asyncio.get_running_loop().time() + 1
        await asyncio.wait_for(running, 5)
        return exchange.status

    assert asyncio.run(ask()) == 200
    assert engine.running == set()


def test_health_generate_without_tokens(engine):
    async def ask():
        engine.config = engine.config.replace({"deadlines.health": 0.2})
        engine.gate.clear()
        return await Exchange(build_app(engine, ServeConfig()), "/health_generate", method="GET").run()

    exchange = asyncio.run(ask())
    assert exchange.status == 503
    assert "no token within 0.2 s" in exchange.json()["error"]["message"]
