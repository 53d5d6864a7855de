"""Starts servers in process groups of their own, measures them over HTTP, and ends them: all in the same way."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
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


Command = Callable[[int], list[str]]
"""The command line of a server, given its port."""


def measure(servers: Mapping[str, Command], folder: Path, work: Work) -> dict[str, Served]:
    """Starts servers one after another, sends the same requests to each of them in turn, and ends them.

    Several can be told apart by less than what the machine's speed changes by meanwhile. Each must leave the others
    their part of the GPUs' memory.

    Args:
        servers: by name.
        folder: gets what each prints, in ``<name>.log``.
    Raises:
        LaunchError: one did not start, or did not answer.
    """
    draw = random.Random(0)  # the same prompts at every start

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[draw.randrange(FIRST_TOKEN_ID, work.vocabulary) for _ in range(length)] for _ in range(count)]

    ports, ready_s = {}, {}
    with contextlib.ExitStack() as stack:
        for name, command in servers.items():
            log = folder / f"{name}.log"
            ports[name] = free_port()
            process, began = stack.enter_context(running(command(ports[name]), log))
            wait_for_answer(process, ports[name], prompts(1, 4)[0], log)
            ready_s[name] = time.monotonic() - began
        prefill = {one: prefill_ms(ports, prompts(work.repeat + 1, one)) for one in work.lengths}
        rounds = [prompts(work.concurrent, DECODE_PROMPT) for _ in range(ROUNDS + 1)]
        rates = tokens_per_s(ports, rounds, work.new_tokens)
    return {
        name: Served(ready_s[name], {length: took[name] for length, took in prefill.items()}, rates[name])
        for name in servers
    }


def prefill_ms(ports: Mapping[str, int], prompts: Sequence[list[int]]) -> dict[str, float]:
    """By server, median milliseconds of requests of one token; the first is not counted."""
    took: dict[str, list[float]] = {name: [] for name in ports}
    for prompt in prompts:
        for name, port in ports.items():
            began = time.perf_counter()
            generate(port, prompt, 1)
            took[name].append((time.perf_counter() - began) * 1e3)
    return {name: median_high(each[1:]) for name, each in took.items()}


def tokens_per_s(ports: Mapping[str, int], rounds: Sequence[list[list[int]]], new_tokens: int) -> dict[str, float]:
    """By server, median new tokens per second of a round of requests sent at once; the first round is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in ports}
    for prompts in rounds:
        for name, port in ports.items():
            with ThreadPoolExecutor(len(prompts)) as pool:
                began = time.perf_counter()
                count = sum(pool.map(lambda prompt, port=port: generate(port, prompt, new_tokens), prompts))
                rates[name].append(count / (time.perf_counter() - began))
    return {name: median_high(each[1:]) for name, each in rates.items()}


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
