"""A cell's engine behind HTTP, and requests of many clients to it: how long they take as clients see it.

As a program, ``python -m raylaunch.benchmarks.sweep.serving``, it is the clients: a process of their own, so that they
do not take turns with the server. A :class:`Load` comes as JSON on its standard input.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from raylaunch.benchmarks.results import percentile
from raylaunch.benchmarks.timed_server import asked, request
from raylaunch.errors import LaunchError, RequestFailed
from raylaunch.sglang.children import how_ended

if TYPE_CHECKING:
    from raylaunch.benchmarks.sweep.plan import ServeMeasure
    from raylaunch.engine import EngineBase

HOST = "127.0.0.1"
START_S, END_S, POLL_S = 60.0, 30.0, 0.02


@dataclass(frozen=True)
class Load:
    """Requests that clients send to ``/generate``, so many at a time; the first round of them is not timed."""

    port: int
    concurrency: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    vocabulary: int


@dataclass(frozen=True)
class ServeResult:
    """Requests at a concurrency: tokens and requests per second of all; of one, the median seconds to its first token
    and between two of its tokens, and the 99th percentile of the first."""

    concurrency: int
    requests: int
    tokens_per_second: float
    requests_per_second: float
    first_token: float
    first_token_p99: float
    each_token: float


def refusal(engine: EngineBase, wanted: ServeMeasure, concurrency: int) -> str:
    """Why such requests, so many at a time, cannot be measured, or ""."""
    from raylaunch.serve.limits import max_concurrent

    if wanted.prompt_tokens + wanted.new_tokens > engine.max_context:
        asked = f"{wanted.prompt_tokens} prompt tokens and {wanted.new_tokens} new ones"
        return f"{asked} are more than the context of {engine.max_context}"
    most = max_concurrent(engine.config, engine.config.serve)
    if most is not None and concurrency > most:
        return f"the server answers {most} requests at a time (serve.max_concurrent)"
    return ""


def time_serving(concurrency: int, port: int, vocabulary: int, wanted: ServeMeasure) -> ServeResult:
    """Has clients send requests to the server at ``port``, so many at a time. Raises :class:`RequestFailed`."""
    requests = max(wanted.requests, concurrency)
    load = Load(port, concurrency, requests, wanted.prompt_tokens, wanted.new_tokens, vocabulary)
    done = subprocess.run(
        [sys.executable, "-m", "raylaunch.benchmarks.sweep.serving"],
        input=json.dumps(asdict(load)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RequestFailed(last or f"the process of the clients {how_ended(done.returncode)}")
    return ServeResult(**json.loads(done.stdout))


@contextlib.contextmanager
def served(engine: EngineBase) -> Iterator[int]:
    """The engine's HTTP application on a port of the loopback interface, without a key."""
    import uvicorn

    from raylaunch.serve.run import application, bind

    settings = engine.config.serve.model_copy(update={"host": HOST, "port": 0, "api_key": None})
    with bind(settings) as listener:
        app, loop = application(engine, settings, exposed=False)
        lifespan: Any = "off" if loop is None else "on"
        server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning", lifespan=lifespan))
        sockets = listener.everything()
        if loop is None:
            thread = threading.Thread(target=server.run, args=(sockets,), name="raylaunch-http", daemon=True)
            thread.start()
        else:
            serving = loop.submit(server.serve(sockets))
        end = time.monotonic() + START_S
        while not server.started:
            if time.monotonic() > end:
                raise RequestFailed(f"the HTTP server has not started within {START_S:g} s")
            time.sleep(POLL_S)
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            if loop is None:
                thread.join(END_S)
            else:
                serving.result(END_S)


def send(load: Load) -> ServeResult:
    """Sends all requests. Raises ``OSError``, or :class:`LaunchError` for an answer that is none."""
    draw = random.Random(load.concurrency)

    def prompts(count: int) -> list[list[int]]:
        return [[draw.randrange(load.vocabulary) for _ in range(load.prompt_tokens)] for _ in range(count)]

    with ThreadPoolExecutor(load.concurrency) as pool:
        list(pool.map(lambda prompt: ask(load, prompt), prompts(load.concurrency)))
        asked = prompts(load.requests)
        began = time.perf_counter()
        taken = list(pool.map(lambda prompt: ask(load, prompt), asked))
        seconds = time.perf_counter() - began
    first = [one for one, _ in taken]
    return ServeResult(
        load.concurrency,
        load.requests,
        load.requests * load.new_tokens / seconds,
        load.requests / seconds,
        median(first),
        percentile(first, 99),
        median((whole - one) / (load.new_tokens - 1) for one, whole in taken),
    )


def ask(load: Load, prompt: list[int]) -> tuple[float, float]:
    """Seconds of a streamed request to its first token and to its end."""
    body = request(prompt, load.new_tokens, stream=True)
    began, first, count = time.perf_counter(), 0.0, 0
    with asked(load.port, body) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise LaunchError(f"/generate answered {event['error']}")
            count = event["meta_info"]["completion_tokens"]
            first = first or (time.perf_counter() - began if count else 0.0)
    if count != load.new_tokens:
        raise LaunchError(f"/generate gave {count} tokens, asked {load.new_tokens}")
    return first, time.perf_counter() - began


def main() -> None:
    """The program: results on standard output; or code 1, and on standard error why there are none, in one line."""
    try:
        print(json.dumps(asdict(send(Load(**json.load(sys.stdin))))))
    except LaunchError as error:
        sys.exit(" ".join(error.summary.split()))
    except (OSError, http.client.HTTPException) as error:
        sys.exit(" ".join(f"{error}".split()) or type(error).__name__)


if __name__ == "__main__":
    main()
