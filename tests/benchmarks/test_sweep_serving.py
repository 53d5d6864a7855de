"""The clients of a cell that serves, against a server of a few lines."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from raylaunch.benchmarks.sweep.plan import ServeMeasure
from raylaunch.benchmarks.sweep.serving import Load, refusal, send, time_serving
from raylaunch.config import LaunchConfig
from raylaunch.errors import RequestFailed

FIRST_S, EACH_S = 0.05, 0.01


@contextmanager
def server(
    *, status: int = 200, error: str = "", missing: int = 0, kills: bool = False
) -> Iterator[tuple[int, list[int]]]:
    """Answers ``/generate`` as raylaunch does, a token at a time; its port, and how many requests ran at each start."""
    running, seen, lock = set[int](), list[int](), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert asked["stream"]
            for one in psutil.Process().children() if kills else ():  # the clients, as the kernel where memory runs out
                one.kill()
            assert len(asked["input_ids"]) == 6
            assert all(0 <= one < 10 for one in asked["input_ids"])
            with lock:
                running.add(id(self))
                seen.append(len(running))
            self.send_response(status)
            self.end_headers()
            time.sleep(FIRST_S)
            for count in range(1, asked["sampling_params"]["max_new_tokens"] + 1 - missing):
                self.say({"text": "1", "meta_info": {"completion_tokens": count}})
                time.sleep(EACH_S)
            if error:
                self.say({"error": error})
            self.wfile.write(b"data: [DONE]\n\n")
            with lock:
                running.discard(id(self))

        def say(self, event: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield http.server_port, seen
    finally:
        http.shutdown()
        http.server_close()


def test_requests_at_a_time_and_their_times() -> None:
    with server() as (port, seen):
        result = send(Load(port, concurrency=3, requests=6, prompt_tokens=6, new_tokens=5, vocabulary=10))
    assert (len(seen), max(seen)) == (3 + 6, 3)  # the first round is not counted
    assert (result.concurrency, result.requests) == (3, 6)
    assert FIRST_S <= result.first_token <= result.first_token_p99
    assert result.each_token >= EACH_S
    assert result.tokens_per_second == pytest.approx(5 * result.requests_per_second)
    assert 0 < result.requests_per_second < 3 / (FIRST_S + 4 * EACH_S)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"status": 503}, "/generate answered 503"),
        ({"error": "a rank died"}, "/generate answered a rank died"),
        ({"missing": 1}, "/generate gave 4 tokens, asked 5"),
        ({"kills": True}, "the process of the clients was killed by SIGKILL"),
    ],
)
def test_an_answer_that_is_none_ends_the_measurement(broken: dict[str, Any], message: str) -> None:
    wanted = ServeMeasure(concurrency=(2,), requests=1, prompt_tokens=6, new_tokens=5)
    with server(**broken) as (port, _), pytest.raises(RequestFailed, match=message):
        time_serving(2, port, 10, wanted)


@pytest.mark.parametrize(
    ("settings", "tokens", "concurrency", "why"),
    [
        ((), 64, 256, ""),
        ((), 64, 257, "the server answers 256 requests at a time (serve.max_concurrent)"),
        (("serve.max_concurrent=1024",), 64, 1000, ""),
        (("engine.kind=sglang",), 64, 1000, ""),
        (("engine.kind=sglang", "serve.max_concurrent=8"), 64, 9, "the server answers 8 requests at a time"),
        ((), 65, 1, "65 prompt tokens and 64 new ones are more than the context of 128"),
    ],
)
def test_what_cannot_be_served_at_a_time(settings: tuple[str, ...], tokens: int, concurrency: int, why: str) -> None:
    engine: Any = SimpleNamespace(config=LaunchConfig.default(settings), max_context=128)
    said = refusal(engine, ServeMeasure(prompt_tokens=tokens, new_tokens=64), concurrency)
    assert (why in said, bool(said)) == (True, bool(why))
