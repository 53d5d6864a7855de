"""SGLang's own HTTP application, served by this package over scripted ranks."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from pydantic import SecretStr

from raylaunch.health import Health
from raylaunch.serve.run import bind, exposed, serve
from tests.serve.fake_engine import FakeEngine
from tests.sglang.conftest import CONFIG, LOST, needs_sglang
from tests.sglang.scripted_rank import OFFER

pytestmark = [pytest.mark.slow, needs_sglang]
READY, GONE = (Health(ready, condition, reason, (), 0, 0) for ready, condition, reason in [
    (True, "ready", ""), (False, "launching", LOST.headline()),
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
    one.config, one.frontend, one.now = CONFIG, frontend, READY
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
        serve(engine, settings, listener, say=lambda _: started.set())
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


def test_a_lost_group(engine, frontend, rank):
    def ask(client):
        rank.hold.set()
        with ThreadPoolExecutor() as pool:
            posts = [pool.submit(client.post, path, json=body) for path, body in LOSABLE]
            operator = pool.submit(client.get, "/server_info")  # waits for the ranks in a way of its own
            end = time.monotonic() + 10
            while len(rank.seen) < len(LOSABLE) and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(0.2)
            began = time.monotonic()
            engine.now = GONE
            frontend.down(LOST)
            for post in posts:
                answer = post.result()
                assert "rank 1 is lost" in answer.text
                assert answer.status_code == 503 or "data: [DONE]" in answer.text
            assert time.monotonic() - began < 1.0
            assert operator.result().status_code == 503
        for path in ("/health", "/health_generate", "/v1/models", "/ready"):
            assert client.get(path).status_code == 503, path
        answer = client.post("/generate", json={"text": "1"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert client.get("/status.json").status_code == 200
        rank.hold.clear()
        frontend.up(OFFER)
        engine.now = READY
        assert client.post("/generate", json={"text": "1+1="}).json()["text"] == "42"

    served(engine, ask)


def test_a_key(engine):
    settings = CONFIG.serve.model_copy(update={"api_key": SecretStr("secret")})

    def ask(client):
        assert client.get("/v1/models").status_code == 401
        assert client.post("/generate", json={"text": "1"}).status_code == 401
        assert client.get("/flush_cache").status_code == 401
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200

    served(engine, ask, settings)


def test_operators_need_a_key_where_others_can_reach_the_server(engine):
    settings = CONFIG.serve.model_copy(update={"host": "0.0.0.0"})
    with bind(settings) as listener:
        assert exposed(settings, listener)

    def ask(client):
        for path in ("/start_profile", "/update_weights_from_disk", "/release_memory_occupation", "/open_session"):
            assert client.post(path, json={}).status_code == 403, path
        assert client.post("/generate", json={"text": "12+30="}).json()["text"] == "42"

    served(engine, ask, settings)
