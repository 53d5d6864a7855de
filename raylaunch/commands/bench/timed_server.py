"""Starts a server in a process group of its own, measures it over HTTP, and ends it. The same for every server."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_high

from raylaunch.children import end, last_lines
from raylaunch.errors import LaunchError

READY_S = 1800.0
ANSWER_S = 600.0
END_S = 90.0
POLL_S = 0.1
ROUNDS = 3
DECODE_PROMPT = 32
LOG_LINES = 25
FIRST_TOKEN_ID = 10


@dataclass(frozen=True)
class Served:
    """What was measured of one server.

    Attributes:
        ready_s: from the start of its process to its first answer, one token long.
        prefill_ms: by prompt length, median milliseconds of a request of one new token.
        decode_tokens_per_s: new tokens per second of many requests at once; median of the rounds.
    """

    ready_s: float
    prefill_ms: dict[int, float]
    decode_tokens_per_s: float

    def __str__(self) -> str:
        prefill = ", ".join(f"{length} tokens {ms:.2f} ms" for length, ms in self.prefill_ms.items())
        return f"ready after {self.ready_s:.1f} s; prefill {prefill}; decode {self.decode_tokens_per_s:.0f} tokens/s"


@dataclass(frozen=True)
class Work:
    """What a server is measured with.

    Attributes:
        lengths: prompt lengths in tokens; the tokens are drawn anew for each request, so nothing is found in a cache.
        repeat: requests of each length.
        concurrent: requests at once, to measure decoding with.
        new_tokens: of each of those.
        vocabulary: token ids are below it.
    """

    lengths: tuple[int, ...]
    repeat: int
    concurrent: int
    new_tokens: int
    vocabulary: int

    def shortest(self) -> Work:
        """Enough to have run everything once."""
        return replace(self, lengths=self.lengths[:1], repeat=1)


def measure(command: Callable[[int], list[str]], log: Path, work: Work) -> Served:
    """Starts a server, measures it and ends it.

    Args:
        command: its command line, given its port.
        log: file that gets what it prints.
    Raises:
        LaunchError: it did not start, or did not answer.
    """
    draw = random.Random(0)  # the same prompts for every server

    def prompt(length: int) -> list[int]:
        return [draw.randrange(FIRST_TOKEN_ID, work.vocabulary) for _ in range(length)]

    port = free_port()
    with running(command(port), log) as (process, began):
        wait_for_answer(process, port, prompt(4), log)
        ready_s = time.monotonic() - began
        prefill = {one: prefill_ms(port, [prompt(one) for _ in range(work.repeat + 1)]) for one in work.lengths}
        rounds = [[prompt(DECODE_PROMPT) for _ in range(work.concurrent)] for _ in range(ROUNDS + 1)]
        rates = [tokens_per_s(port, prompts, work.new_tokens) for prompts in rounds]
    return Served(ready_s, prefill, median_high(rates[1:]))


def prefill_ms(port: int, prompts: Sequence[list[int]]) -> float:
    """Median milliseconds of requests of one token; the first is not counted."""
    took = []
    for prompt in prompts:
        began = time.perf_counter()
        generate(port, prompt, 1)
        took.append((time.perf_counter() - began) * 1e3)
    return median_high(took[1:])


def tokens_per_s(port: int, prompts: Sequence[list[int]], new_tokens: int) -> float:
    """New tokens per second of requests that are all sent at once."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        began = time.perf_counter()
        counts = list(pool.map(lambda prompt: generate(port, prompt, new_tokens), prompts))
        return sum(counts) / (time.perf_counter() - began)


def generate(port: int, prompt: list[int], new_tokens: int, timeout_s: float = ANSWER_S) -> int:
    """Sends one request to ``/generate``. Returns how many tokens came. Raises ``OSError`` or :class:`LaunchError`."""
    sampling = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
    body = json.dumps({"input_ids": prompt, "sampling_params": sampling})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", "/generate", body, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise LaunchError(f"/generate answered {response.status}: {answer[:200].decode(errors='replace')}")
    return int(json.loads(answer)["meta_info"]["completion_tokens"])


def wait_for_answer(process: subprocess.Popen[bytes], port: int, prompt: list[int], log: Path) -> None:
    """Returns with the first answer. Raises :class:`LaunchError` with the log's end if there is none."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LaunchError(f"the server ended with code {process.returncode}:\n{last_lines(log, LOG_LINES)}")
        try:
            generate(port, prompt, 1)
        except (OSError, http.client.HTTPException, LaunchError):  # not listening yet, or not ready: 503
            time.sleep(POLL_S)
        else:
            return
    raise LaunchError(f"the server gave no answer within {READY_S:g} s:\n{last_lines(log, LOG_LINES)}")


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """A process in a group of its own, and when it was started (monotonic); at the end the whole group is gone."""
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process, began
    finally:
        end(process, END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        _wait_until_gone(process.pid)


def _wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(POLL_S)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
