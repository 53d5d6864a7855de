"""SGLang's own HTTP application, served by this package over scripted ranks."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
from pydantic import SecretStr

from raylaunch.engine.health import Condition, Health
from raylaunch.serve.run import bind, exposed, serve
from tests.busy import patient
from tests.serve.fake_engine import FakeEngine
from tests.sglang.conftest import CONFIG, LOST, RESOLVED, needs_sglang
from tests.sglang.scripted_rank import OFFER
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, needs_sglang]
READY, GONE = (Health(ready, condition, reason, (), 0, 0) for ready, condition, reason in [
    (True, Condition.READY, ""), (False, Condition.REBUILDING, LOST.headline()),
])  # fmt: skip
LOSABLE = [
    ("/generate", {"text": "1+1="}),
    ("/generate", {"text": "1+1=", "stream": True}),
    ("/v1/completions", {"model": "m", "prompt": "1+1="}),
    ("/v1/completions", {"model": "m", "prompt": "1+1=", "stream": True}),
]


@pytest.fixture
def engine(frontend, rank):
    one = FakeEngine()
    one.config, one.frontend, one.now = CONFIG.override("recovery.while_rebuilding=fail"), frontend, READY
    return one


def served(engine, ask, settings=CONFIG.serve):
    """Serves on this, the main thread, as the command does; ``ask`` runs on another and ends it with SIGTERM."""
    listener = bind(settings)
    port = listener.getsockname()[1]

    def run():
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                ask(client)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        started = threading.Event()
        asked = pool.submit(lambda: started.wait(60) and run())
        serve(engine, settings, listener, say=lambda text: started.set() if text.startswith("serving ") else None)
        asked.result()


def test_endpoints(engine):
    def ask(client):
        answer = client.post("/generate", json={"text": "12+30=", "sampling_params": {"max_new_tokens": 5}}).json()
        assert (answer["text"], answer["meta_info"]["prompt_tokens"]) == ("42", 6)
        body = {"model": "m", "prompt": "12+30=", "max_tokens": 4}
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "42"
        for path in ("/health", "/health_generate", "/ready", "/v1/models", "/", "/status.json"):
            assert client.get(path).status_code == 200, path
        assert "raylaunch_ready 1.0" in client.get("/raylaunch/metrics").text
        assert (
            client.post("/generate", json={"text": "1", "sampling_params": {"max_new_tokens": 5000}}).status_code == 400
        )
        assert client.post("/generate", content=b" " * (CONFIG.serve.max_body_bytes + 1)).status_code == 413

    served(engine, ask)


def test_requests_have_spans(engine):
    sent = []
    engine.tracer = SimpleNamespace(send=lambda span, headers: sent.append((span, headers.get("traceparent"))))
    parameters = {"max_new_tokens": 5}

    def ask(client):
        two = {"text": ["12+30=", "1+1="], "sampling_params": parameters}
        for number, (path, body, headers) in enumerate(
            [
                ("/generate", two, {"traceparent": "theirs"}),
                ("/generate", {"text": "12+30=", "sampling_params": parameters, "stream": True}, {}),
                ("/v1/completions", {"model": "m", "prompt": "12+30=", "max_tokens": 4, "stream": True}, {}),
                ("/generate", {"text": "1", "sampling_params": {"max_new_tokens": 5000}}, {}),
            ]
        ):
            client.post(path, json=body, headers=headers)
            wait_until(lambda number=number: len(sent) > number)  # a stream's is sent behind its last byte
        client.get("/v1/models")

    served(engine, ask)
    names = ["POST /generate", "POST /generate", "POST /v1/completions", "POST /generate"]
    assert [(span.name, traceparent) for span, traceparent in sent] == [
        (name, "theirs" if at == 0 else None) for at, name in enumerate(names)
    ]
    said = [span.attributes for span, _ in sent]
    assert [one["http.response.status_code"] for one in said] == [200, 200, 200, 400]
    assert [one["gen_ai.usage.input_tokens"] for one in said] == [10, 6, 6, 0]
    assert [one["gen_ai.usage.output_tokens"] for one in said] == [6, 3, 3, 0]
    assert [one["gen_ai.response.finish_reasons"] for one in said] == [("stop", "stop"), ("stop",), ("stop",), ()]
    assert [list(span.events) for span, _ in sent] == [[], ["first token"], ["first token"], []], "known of streams"


def answers_to_the_lost(engine, frontend, posts):
    """Loses the group; the answers to the requests that were running, which come at once and say so."""
    began = time.monotonic()
    engine.now = GONE
    frontend.down(LOST)
    answers = [post.result() for post in posts]
    assert all("rank 1 is lost" in answer.text for answer in answers)
    assert time.monotonic() - began < patient(1.0)
    return answers


def test_a_lost_group(engine, frontend, rank):
    def ask(client):
        rank.hold.set()
        with ThreadPoolExecutor() as pool:
            posts = [pool.submit(client.post, path, json=body) for path, body in LOSABLE]
            operator = pool.submit(client.get, "/server_info")  # waits for the ranks in a way of its own
            wait_until(lambda: len(rank.seen) == len(LOSABLE))
            time.sleep(0.2)
            answers = answers_to_the_lost(engine, frontend, posts)
            assert {(answer.status_code, answer.headers["retry-after"]) for answer in answers} == {(503, "1")}
            assert '"status_code":503' in answers[1].text, "an output like others, and the last"
            assert operator.result().status_code == 503
        for path in ("/health", "/health_generate", "/v1/models", "/ready"):
            assert client.get(path).status_code == 503, path
        answer = client.post("/generate", json={"text": "1"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert client.get("/status.json").status_code == 200
        rank.hold.clear()
        frontend.up(OFFER, RESOLVED)
        engine.now = READY
        assert client.post("/generate", json={"text": "1+1="}).json()["text"] == "42"

    served(engine, ask)


def test_health_does_not_wait_for_ranks_that_are_lost(engine, frontend, rank, caplog):
    """It says why at once, and what it had asked of them is left to nobody, also where its client leaves first."""
    unretrieved = []
    frontend.runs.loop.call_soon_threadsafe(
        frontend.runs.loop.set_exception_handler, lambda _, context: unretrieved.append(context)
    )

    def ask(client):
        rank.hold.set()
        rank.seen.clear()
        with pytest.raises(httpx.ReadTimeout):
            client.get("/health", timeout=0.5)
        with ThreadPoolExecutor() as pool:
            asked = [pool.submit(client.get, path) for path in ("/health", "/health_generate")]
            stream = pool.submit(client.post, "/generate", json={"text": ["1", "2"], "stream": True})
            wait_until(lambda: len(rank.seen) == 5)
            engine.now = GONE
            began = time.monotonic()
            answers = [one.result() for one in asked]
            assert time.monotonic() - began < patient(0.3)
            frontend.down(LOST)
            stream.result()
            assert {(one.status_code, LOST.headline() in one.text) for one in answers} == {(503, True)}
            # The ranks are lost before anybody has said so: the question itself finds out.
            engine.now = READY
            late = pool.submit(client.get, "/health_generate")
            wait_until(lambda: len(rank.seen) == 6)
            began = time.monotonic()
            frontend.down(LOST)
            assert (late.result().status_code, LOST.summary in late.result().text) == (503, True)
            assert time.monotonic() - began < patient(0.3)
        assert frontend.side.manager.rid_to_state == {}
        rank.hold.clear()
        frontend.up(OFFER, RESOLVED)

    served(engine, ask)
    gc.collect()
    frontend.runs.submit(asyncio.sleep(0)).result()
    frontend.runs.loop.call_soon_threadsafe(frontend.runs.loop.set_exception_handler, None)
    assert unretrieved == []
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"max_tokens": 5}, "did you mean 'max_new_tokens'?"),
        ({"max_new_tokens": "5"}, "max_new_tokens = '5': expected `int | null`"),
        ({"logit_bias": [7]}, "logit_bias = [7]: expected `object | null`"),
        ({"json_schema": {"type": "object"}}, "expected `str | null`, got `object`"),
        ({"stop": 7}, "stop = 7: expected `str | array | null`"),
        ({"n": "2"}, "n = '2': expected `int`"),
        ([{"temperature": 0}, {"temperature": "hot"}], "temperature = 'hot': expected `float`"),
        ({"top_p": 7}, "top_p must be in (0, 1], got 7"),
    ],
)
def test_wrong_sampling_parameters(engine, rank, parameters, text):
    prompt = ["1+1=", "2+2="] if isinstance(parameters, list) else "1+1="

    def ask(client):
        body = {"text": prompt, "sampling_params": parameters}
        answer = client.post("/generate", json=body)
        assert (answer.status_code, text in answer.json()["error"]["message"]) == (400, True)
        streamed = client.post("/generate", json={**body, "stream": True})
        first, last, _ = streamed.text.split("\n\n")
        error = json.loads(first.removeprefix("data: "))["error"]
        assert (error["code"], text in error["message"], last) == (400, True, "data: [DONE]")
        assert streamed.status_code == 400
        assert client.post("/generate", json={"text": "1+1="}).json()["text"] == "42"

    served(engine, ask)


@pytest.mark.parametrize("stream", [False, True])
def test_other_wrong_fields(engine, rank, stream):
    """What SGLang refuses by itself, what it would fail over, and what would have ended the ranks."""

    def ask(client):
        for body, text in [
            ({"text": 5}, "Input should be a valid string"),
            ({"input_ids": "text"}, "must be list or null; got str"),
            ({"text": ""}, "the prompt is empty"),
            ({"text": "1", "rid": ["a", "b"]}, "rid is a list"),
            ({"text": ["1", "2"], "sampling_params": [{}]}, "sampling_params has length 1"),
            ({"text": "1", "return_logprob": True, "top_logprobs_num": [1]}, "top_logprobs_num is a list"),
            ({"text": "1", "session_params": {"nothing": 1}}, "no session parameter 'nothing'"),
            ({"input_embeds": [[]]}, "the prompt is empty"),
            ({"input_ids": [3, 99999]}, "token 1 of the prompt is 99999"),
            ({"input_ids": [[3], [-1]]}, "token 0 of the prompt is -1"),
            ({"input_embeds": [[0.5]]}, "input_embeds: SGLang takes them only from a server"),
            ({"text": "1", "return_logprob": True, "top_logprobs_num": 17}, "top_logprobs_num = 17"),
            ({"text": "1", "return_logprob": True, "token_ids_logprob": [16]}, "out-of-vocabulary token id 16"),
            ({"text": "1", "sampling_params": {"top_k": 1 << 31}}, "top_k = 2147483648"),
            ({"text": "1", "temperature": 0}, "temperature is a field that SGLang does not know"),
            ({"text": "1", "sampling_params": {"sampling_seed": 3}}, "enable_deterministic_inference=true"),
            ({"text": "1", "sampling_params": {"is_normalized": True}}, "no sampling parameter 'is_normalized'"),
        ]:
            answer = client.post("/generate", json={**body, "stream": stream})
            assert (answer.status_code, text in answer.text) == (400, True), body
        body = {"model": "m", "prompt": "1+1=", "logprobs": 17, "stream": stream}
        answer = client.post("/v1/completions", json=body)
        assert (answer.status_code, "top_logprobs_num = 17" in answer.text) == (400, True)
        assert client.post("/generate", json={"text": "1+1="}).json()["text"] == "42"

    served(engine, ask)


def test_a_refused_stream_ends_no_other_request_of_its_id(engine, rank):
    """SGLang aborts a stream's requests two seconds after its answer, whoever else has sent one by the same id."""

    def ask(client):
        rank.hold.set()
        with ThreadPoolExecutor() as pool:
            post = pool.submit(client.post, "/generate", json={"text": "1+1=", "rid": "mine"})
            wait_until(lambda: len(rank.seen) == 1)
            stream = {"text": "1", "rid": "mine", "stream": True}
            for refused in (stream, {**stream, "top_logprobs_num": [1]}, {**stream, "text": ["1"], "rid": ["mine"]}):
                assert client.post("/generate", json=refused).status_code == 400
            time.sleep(2.5)
            assert rank.aborted == []
            rank.hold.clear()
            assert post.result().json()["text"] == "42"

    served(engine, ask)


def test_a_stream_that_has_ended_ends_no_later_request_of_its_id(engine, rank):
    def ask(client):
        assert "42" in client.post("/generate", json={"text": "1+1=", "rid": "mine", "stream": True}).text
        rank.hold.set()
        with ThreadPoolExecutor() as pool:
            post = pool.submit(client.post, "/generate", json={"text": "1+1=", "rid": "mine"})
            time.sleep(2.5)
            assert rank.aborted == []
            rank.hold.clear()
            assert post.result().json()["text"] == "42"

    served(engine, ask)


def test_a_stream_whose_client_has_left_is_aborted(engine, rank):
    def ask(client):
        endless = {"max_new_tokens": 1500, "ignore_eos": True}
        body = {"text": "1+1=", "rid": "mine", "stream": True, "sampling_params": endless}
        with client.stream("POST", "/generate", json=body) as answer:
            next(answer.iter_lines())
        wait_until(lambda: rank.aborted == ["mine"])

    served(engine, ask)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_inside_sglang(engine, stream):
    def ask(client):
        body = {"text": ["1", "2"], "bootstrap_room": [1], "stream": stream}
        answer = client.post("/generate", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")

    served(engine, ask)


@pytest.mark.parametrize("reading", [True, False], ids=["the prompt is read", "the samples are drawn"])
def test_several_samples_of_a_lost_group(engine, frontend, rank, reading):
    """They are requests of their own, and that of the caller waits for them: it ends as unavailable, not as wrong."""
    endless = {"max_new_tokens": 1500, "ignore_eos": True, "n": 2}
    openai = {"model": "m", "prompt": "1+1=", "max_tokens": 1500, "ignore_eos": True, "n": 2}
    several = [
        ("/generate", {"text": "1+1=", "sampling_params": endless}),
        ("/generate", {"text": "1+1=", "sampling_params": endless, "stream": True}),
        ("/v1/completions", openai),
        ("/v1/completions", {**openai, "stream": True}),
    ]

    def ask(client):
        if reading:
            rank.hold.set()
        with ThreadPoolExecutor() as pool:
            posts = [pool.submit(client.post, path, json=body) for path, body in several]
            wait_until(lambda: len(rank.seen) == len(several) * (1 if reading else 3))
            time.sleep(0.1)
            for answer in answers_to_the_lost(engine, frontend, posts):
                assert answer.status_code == 503 or (not reading and re.search('code": ?503', answer.text))
        tables = ("rid_to_state", "logical_rid_to_child_rids", "child_rid_to_logical_rid")  # the others of 0.5.17
        assert not any(getattr(frontend.side.manager, name, None) for name in tables)

    served(engine, ask)


def test_a_request_that_cannot_be_told_of_the_loss_keeps_no_other_from_it(engine, frontend, rank, monkeypatch):
    tell = frontend.side.manager._handle_abort_req

    def fails_once(message):
        monkeypatch.setattr(frontend.side.manager, "_handle_abort_req", tell)
        raise TypeError("'>' not supported")

    def ask(client):
        rank.hold.set()
        monkeypatch.setattr(frontend.side.manager, "_handle_abort_req", fails_once)
        with ThreadPoolExecutor() as pool:
            posts = [pool.submit(client.post, "/generate", json={"text": "1+1="}) for _ in range(3)]
            wait_until(lambda: len(rank.seen) == len(posts))
            engine.now = GONE
            frontend.down(LOST)
            for answer in [post.result() for post in posts]:
                assert (answer.status_code, "rank 1 is lost" in answer.text) == (503, True)

    served(engine, ask)


def test_a_stream_that_cannot_be_told_of_the_loss_ends_at_once(engine, frontend, rank, monkeypatch):
    """Its client has the status already, and would wait for ever."""

    def fails(message):
        raise TypeError("'>' not supported")

    monkeypatch.setattr(frontend.side.manager, "_handle_abort_req", fails)
    sampling = {"max_new_tokens": 1500, "ignore_eos": True}
    several = [
        ("/generate", {"text": "1+1=", "sampling_params": sampling, "return_logprob": True}),
        ("/v1/completions", {"model": "m", "prompt": "1+1=", "max_tokens": 1500, "ignore_eos": True, "logprobs": 1}),
    ]

    def begun(client, path, body, first):
        with client.stream("POST", path, json={**body, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            first.release()
            return answer.status_code, "".join(lines)

    def ask(client):
        first = threading.Semaphore(0)
        with ThreadPoolExecutor() as pool:
            posts = [pool.submit(begun, client, path, body, first) for path, body in several]
            assert all(first.acquire(timeout=10) for _ in posts)
            rank.hold.set()
            time.sleep(0.2)
            began = time.monotonic()
            engine.now = GONE
            frontend.down(LOST)
            for status, rest in [post.result() for post in posts]:
                assert (status, "rank 1 is lost" in rest, "[DONE]" in rest) == (200, True, True)
            assert time.monotonic() - began < patient(1.0)
        assert not frontend.side.manager.rid_to_state

    served(engine, ask)


def test_an_output_that_cannot_be_delivered(engine, frontend, rank, monkeypatch):
    """The requests that run end, since nobody can tell whose it was; the server answers as before."""
    deliver = frontend.side.manager._handle_batch_output

    async def fails_once(message):
        monkeypatch.setattr(frontend.side.manager, "_handle_batch_output", deliver)
        raise KeyError("no such field")

    def ask(client):
        endless = {"text": "1+1=", "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True}}
        monkeypatch.setattr(frontend.side.manager, "_handle_batch_output", fails_once)
        answer = client.post("/generate", json=endless)
        assert (answer.status_code, "could not be delivered: KeyError" in answer.text) == (503, True)
        assert client.post("/generate", json={"text": "1+1="}).json()["text"] == "42"
        for path in ("/health", "/health_generate", "/ready"):
            assert client.get(path).status_code == 200, path
        assert len(rank.aborted) == 1, "or the ranks go on for nobody"

    served(engine, ask)


def test_a_key(engine):
    settings = CONFIG.serve.model_copy(update={"api_key": SecretStr("secret")})

    def ask(client):
        assert client.get("/v1/models").status_code == 401
        assert client.post("/generate", json={"text": "1"}).status_code == 401
        for path in ("/flush_cache", "/status.json", "/raylaunch/metrics"):
            assert client.get(path).status_code == 401, path
        for path in ("/health", "/health_generate", "/ready"):
            assert client.get(path).status_code == 200, path
        assert client.get("/metrics").status_code == 404, "SGLang keeps no figures here"
        preflight = {"origin": "http://elsewhere", "access-control-request-method": "POST"}
        assert client.options("/generate", headers=preflight).headers["access-control-allow-methods"]
        assert client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200

    served(engine, ask, settings)


@pytest.mark.parametrize("origins", [("*",), ("http://localhost:5173",), ()])
def test_pages_of_other_origins(engine, origins):
    """SGLang's own rule, which allows all, is not heard beside the setting."""
    settings = CONFIG.serve.model_copy(update={"api_key": SecretStr("secret"), "cors_origins": origins})
    page, elsewhere = "http://localhost:5173", "http://elsewhere.example"
    allow, key = "access-control-allow-origin", {"authorization": "Bearer secret"}

    def allowed(client, origin, method, path, **more):
        answer = client.request(method, path, headers={"origin": origin, **more.pop("headers", {})}, **more)
        # Of any origin Starlette's versions answer the origin or a star.
        return answer.status_code, [one.replace("*", origin) for one in answer.headers.get_list(allow)]

    def ask(client):
        for origin in (page, elsewhere):
            mine = [origin] if origins == ("*",) or origin in origins else []
            body = {"text": "1+1=", "stream": True}
            assert allowed(client, origin, "POST", "/generate", json=body, headers=key) == (200, mine)
            assert allowed(client, origin, "GET", "/v1/models", headers=key) == (200, mine)
            assert allowed(client, origin, "GET", "/v1/models") == (401, mine)
            assert allowed(client, origin, "GET", "/nope", headers=key) == (404, mine)
            assert allowed(client, origin, "POST", "/generate", json={}, headers=key) == (400, mine)
            assert allowed(client, origin, "GET", "/status.json", headers=key) == (200, mine)
            preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
            for path in ("/v1/chat/completions", "/generate", "/v1/models", "/status.json"):
                status, header = allowed(client, origin, "OPTIONS", path, headers=preflight)
                assert (status == 200, header) == (bool(mine), mine), path
        engine.now = GONE
        gone = allowed(client, page, "POST", "/generate", json={"text": "1"}, headers=key)
        assert gone == (503, [page] if origins else [])

    served(engine, ask, settings)


HALF = r'"a\ud83d"'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", '{"text": HALF}'),
        ("/generate", '{"text": ["a", HALF]}'),
        ("/generate", '{"text": "a", "sampling_params": {"stop": [HALF]}}'),
        ("/generate", '{"text": "a", "rid": HALF}'),
        ("/v1/completions", '{"model": HALF, "prompt": "a"}'),
        ("/v1/completions", '{"model": "m", "prompt": HALF, "stream": true}'),
        ("/v1/completions", '{"model": "m", "prompt": "a", "stop": HALF}'),
        ("/v1/chat/completions", '{"model": "m", "messages": [{"role": "user", "content": HALF}]}'),
        ("/v1/chat/completions", '{"model": "m", "messages": [{"role": "user", "content": "a"}], "tools": [HALF]}'),
        ("/tokenize", '{"model": "m", "prompt": HALF}'),
        ("/abort_request", '{"rid": HALF}'),
    ],
)
def test_half_of_a_pair(engine, path, body):
    def ask(client):
        headers = {"content-type": "application/json"}
        answer = client.post(path, content=body.replace("HALF", HALF), headers=headers)
        assert answer.status_code == 400
        message = answer.json()["error"]["message"]
        assert message.startswith("the body holds text that cannot be encoded: character 1 is half of a surrogate pair")
        whole = body.replace("HALF", r'"1+1=\ud83d\ude00"')
        assert "cannot be encoded" not in client.post(path, content=whole, headers=headers).text

    served(engine, ask)


def test_operators_need_a_key_where_others_can_reach_the_server(engine):
    settings = CONFIG.serve.model_copy(update={"host": "0.0.0.0"})
    with bind(settings) as listener:
        assert exposed(settings, listener)

    def ask(client):
        for path in ("/start_profile", "/update_weights_from_disk", "/release_memory_occupation", "/open_session"):
            assert client.post(path, json={}).status_code == 403, path
        assert client.post("/generate", json={"text": "12+30="}).json()["text"] == "42"

    served(engine, ask, settings)
