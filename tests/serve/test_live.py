"""Clients that people use, against a real server in front of real ranks."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.busy import patient
from tests.serve.conftest import events_of, served
from tests.waiting import wait_until

MODEL = "tiny-adder"
LONG = {"max_new_tokens": 1500, "ignore_eos": True}
GREEDY = {"temperature": 0}


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as one:
        yield one


# ---- the openai package


def test_completion(client):
    answer = client.completions.create(model=MODEL, prompt="12+30=", temperature=0, max_tokens=8)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("42", "stop")
    assert answer.usage.total_tokens == 8


def test_streamed_completion(client):
    options = {"include_usage": True}
    with client.completions.create(
        model=MODEL, prompt="12+30=", temperature=0, stream=True, stream_options=options
    ) as stream:
        events = list(stream)
    assert "".join(event.choices[0].text for event in events if event.choices) == "42"
    assert events[-1].usage.completion_tokens == 2


def test_logprobs(client):
    choice = client.completions.create(model=MODEL, prompt="12+30=", temperature=0, logprobs=2).choices[0]
    assert choice.logprobs.tokens == ["4", "2"]
    assert all(-0.1 < value <= 0 for value in choice.logprobs.token_logprobs)
    assert [max(top, key=top.get) for top in choice.logprobs.top_logprobs] == ["4", "2"]
    assert {len(top) for top in choice.logprobs.top_logprobs} == {2}


def test_two_choices_of_a_seed(client):
    def ask(seed):
        asked = {"model": MODEL, "prompt": "12+30=", "temperature": 50, "max_tokens": 12, "seed": seed, "n": 2}
        return [choice.text for choice in client.completions.create(**asked, extra_body={"ignore_eos": True}).choices]

    first = ask(5)
    assert ask(5) == first
    assert first[0] != first[1]
    assert ask(6)[0] == first[1]  # the second choice draws as the first of the next seed


def test_chat(client):
    messages = [{"role": "user", "content": "12+30="}]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, logprobs=True, top_logprobs=1, n=2
    )
    assert [choice.message.content for choice in answer.choices] == ["42", "42"]
    assert [entry.token for entry in answer.choices[0].logprobs.content] == ["4", "2"]


def test_chat_asynchronously(live):
    async def ask(left, right):
        messages = [{"role": "user", "content": f"{left}+{right}="}]
        stream = await client.chat.completions.create(model=MODEL, messages=messages, temperature=0, stream=True)
        return "".join([event.choices[0].delta.content or "" async for event in stream])

    async def ask_all():
        nonlocal client
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(number, 10) for number in range(20)))

    client = None
    assert asyncio.run(ask_all()) == [str(number + 10) for number in range(20)]


def test_stop(client):
    answer = client.completions.create(model=MODEL, prompt="12+30=", temperature=0, stop=["2"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("4", "stop")


def test_errors_have_the_packages_types(live, client):
    with pytest.raises(openai.NotFoundError, match="does not exist") as missing:
        client.completions.create(model="gpt-4", prompt="1+1=")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="together at most 2048") as long:
        client.completions.create(model=MODEL, prompt="1+1=", max_tokens=5000)
    assert long.value.code == "context_length_exceeded"
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_key(live):
    with served(live.engine, live.settings.model_copy(update={"api_key": _secret("k")})) as guarded:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0).models.list()
        assert list(openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="k").models.list())


def _secret(text):
    from pydantic import SecretStr

    return SecretStr(text)


def test_limits_by_a_real_server(live):
    changes = {"max_body_bytes": 200, "max_concurrent": 1}
    with served(live.engine, live.settings.model_copy(update=changes)) as limited, httpx.Client(timeout=30) as client:
        url = f"{limited.url}/generate"
        assert client.post(url, json={"text": "1" * 500}).status_code == 413
        assert client.post(url, content=iter([b"x" * 150] * 3)).status_code in (413, 415)
        with client.stream("POST", url, json={"text": "1+1=", "stream": True, "sampling_params": LONG}) as stream:
            assert stream.status_code == 200
            with httpx.Client() as other:
                assert other.post(url, json={"text": "1+1="}).status_code == 429
        wait_until(lambda: live.running() == 0, 5)
        assert client.post(url, json={"text": "1+1=", "sampling_params": GREEDY}).json()["text"] == "2"


# ---- SGLang's interface


def test_generate(live):
    answer = httpx.post(f"{live.url}/generate", json={"text": ["12+30=", "7+8="], "sampling_params": GREEDY}).json()
    assert [one["text"] for one in answer] == ["42", "15"]


def test_generate_streams_as_tokens_come(live):
    arrived = []
    body = {"text": "12+30=", "stream": True, "sampling_params": {**LONG, "max_new_tokens": 100}}
    with httpx.stream("POST", f"{live.url}/generate", json=body, timeout=30) as stream:
        text = ""
        for piece in stream.iter_text():
            arrived.append(time.monotonic())
            text += piece
    events = events_of(text)
    assert events[-1]["meta_info"]["completion_tokens"] == 100
    assert all(after["text"].startswith(before["text"]) for before, after in itertools.pairwise(events))
    assert len(arrived) > 50  # not one piece at the end


def test_health(live):
    for path in ("/health", "/ready", "/health_generate"):
        assert httpx.get(live.url + path).status_code == 200


# ---- clients that leave


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_client_that_leaves_frees_its_request(live, path, stream):
    own = {"text": "1+1=", "sampling_params": LONG}
    body = own if path == "/generate" else {"prompt": "1+1=", "max_tokens": 1500, "ignore_eos": True}
    connection = http.client.HTTPConnection(urlsplit(live.url).netloc, timeout=30)
    connection.request("POST", path, json.dumps({**body, "stream": stream}), {"content-type": "application/json"})
    wait_until(lambda: live.running() == 1, 5)
    connection.sock.close()
    connection.close()
    began = time.monotonic()
    wait_until(lambda: live.running() == 0, seconds=patient(2))
    assert time.monotonic() - began < patient(2)
    assert live.engine.health().requests == 0


def test_a_client_that_resets_the_connection(live):
    connection = socket.create_connection(("127.0.0.1", urlsplit(live.url).port))
    body = json.dumps({"text": "1+1=", "stream": True, "sampling_params": LONG}).encode()
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    connection.sendall(head % len(body) + body)
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    wait_until(lambda: live.running() == 0, 5)


def test_abort(live):
    with ThreadPoolExecutor() as pool:
        body = {"text": "1+1=", "rid": "mine", "sampling_params": LONG}
        answer = pool.submit(httpx.post, f"{live.url}/generate", json=body, timeout=30)
        wait_until(lambda: live.running() == 1, 5)
        assert httpx.post(f"{live.url}/abort_request", json={"rid": "mine"}).status_code == 200
        assert answer.result(10).json()["meta_info"]["finish_reason"]["type"] == "abort"
    wait_until(lambda: live.running() == 0, 5)


def test_many_clients_each_get_their_own_answer(live):
    pick = random.Random(0)
    sums = [(pick.randrange(50), pick.randrange(50)) for _ in range(200)]

    async def ask(client, left, right):
        body = {"prompt": f"{left}+{right}=", "temperature": 0, "stream": True}
        answer = await client.post("/v1/completions", json=body)
        return "".join(event["choices"][0]["text"] for event in events_of(answer.text))

    async def ask_all():
        async with httpx.AsyncClient(base_url=live.url, timeout=60, limits=httpx.Limits(max_connections=32)) as client:
            return await asyncio.gather(*(ask(client, *pair) for pair in sums))

    alone = [one.text for one in live.engine.generate([f"{left}+{right}=" for left, right in sums], **GREEDY)]
    assert asyncio.run(ask_all()) == alone
