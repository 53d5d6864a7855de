"""Starts servers in process groups of their own, measures them over HTTP, and ends them: all in the same way."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median_high
from typing import Any

from raylaunch.benchmarks.processors import confine, deals, family
from raylaunch.errors import LaunchError
from raylaunch.sglang.children import end, last_lines

READY_S = 1800.0
ANSWER_S = 600.0
END_S = 90.0
POLL_S = 0.1
ROUNDS, PREFILLS_A_ROUND = 3, 10
EACH_DEAL = 3
DECODE_PROMPT = 32
LOG_LINES = 25
FIRST_TOKEN_ID = 10


@dataclass(frozen=True)
class Served:
    """What was measured of one server.

    Attributes:
        ready_s: from the start of its process to its first answer, one token long.
        prefill_ms: by prompt length, median milliseconds of a request of one new token: one median for each deal of
            the processors, or one in all for a server that was measured alone.
        decode_tokens_per_s: new tokens per second of many requests at once, likewise.
    """

    ready_s: float
    prefill_ms: dict[int, list[float]]
    decode_tokens_per_s: list[float]

    def __str__(self) -> str:
        prefill = ", ".join(f"{length} tokens {fmean(ms):.2f} ms" for length, ms in self.prefill_ms.items())
        decode = fmean(self.decode_tokens_per_s)
        return f"ready after {self.ready_s:.1f} s; prefill {prefill}; decode {decode:.0f} tokens/s"


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
Prompts = list[list[int]]
"""Token ids of requests that are sent at once."""


def measure(servers: Mapping[str, Command], folder: Path, work: Work) -> dict[str, Served]:
    """Starts servers one after another, sends the same requests to each of them in turn, and ends them.

    Several can be told apart by less than what the machine's speed changes by meanwhile. Each must leave the others
    their part of the GPUs' memory, and gets its part of the processors: see :mod:`raylaunch.benchmarks.processors`.

    Args:
        servers: by name.
        folder: gets what each prints, in ``<name>.log``.
    Raises:
        LaunchError: one did not start, or did not answer.
    """
    draw = random.Random(0)  # the same prompts at every start

    def prompts(count: int, length: int) -> Prompts:
        return [[draw.randrange(FIRST_TOKEN_ID, work.vocabulary) for _ in range(length)] for _ in range(count)]

    ports, families, ready_s = {}, {}, {}
    with contextlib.ExitStack() as stack:
        for name, command in servers.items():
            log = folder / f"{name}.log"
            ports[name] = free_port()
            process, began = stack.enter_context(running(command(ports[name]), log))
            wait_for_answer(process, ports[name], prompts(1, 4)[0], log)
            ready_s[name] = time.monotonic() - began
            families[name] = family(process.pid)
        side_by_side = SideBySide(ports, families)
        prefill = {one: side_by_side.medians(prefill_ms, partial(prompts, 1, one), work.repeat) for one in work.lengths}
        decode = side_by_side.medians(
            partial(tokens_per_s, new_tokens=work.new_tokens),
            partial(prompts, work.concurrent, DECODE_PROMPT),
            max(ROUNDS, work.repeat // PREFILLS_A_ROUND),
        )
    return {
        name: Served(ready_s[name], {length: medians[name] for length, medians in prefill.items()}, decode[name])
        for name in servers
    }


class SideBySide:
    """Servers that are up at the same time and are asked the same in turn.

    Args:
        ports: by name.
        families: of each, its process and all that it has started.
    """

    def __init__(self, ports: Mapping[str, int], families: Mapping[str, Sequence[int]]) -> None:
        self._ports, self._families = ports, families
        self._deals = deals(sorted(os.sched_getaffinity(0)), len(ports), random.Random(0))

    def medians(
        self, value: Callable[[int, Prompts], float], prompts: Callable[[], Prompts], count: int
    ) -> dict[str, list[float]]:
        """By server, medians of a value: one for each deal of the processors, or one in all if there is one server.

        Args:
            value: made of a port and prompts; the first after a deal is not counted.
            count: how many values of each server count, at least.
        """
        turns, each = plan(count, len(self._ports))
        medians: dict[str, list[float]] = {name: [] for name in self._ports}
        for _ in range(turns):
            self._deal()
            taken: dict[str, list[float]] = {name: [] for name in self._ports}
            for turn in range(each + 1):
                asked = prompts()
                for name in sorted(self._ports, reverse=turn % 2 == 1):  # in case one disturbs the next
                    taken[name].append(value(self._ports[name], asked))
            for name, values in taken.items():
                medians[name].append(median_high(values[1:]))
        return medians

    def _deal(self) -> None:
        if len(self._ports) > 1:
            for pids, processors in zip(self._families.values(), next(self._deals), strict=True):
                confine(pids, processors)


def plan(count: int, servers: int) -> tuple[int, int]:
    """How often the processors are dealt out, each time for all servers in turn, and how many values each time."""
    if servers == 1:
        return 1, count
    return servers * math.ceil(count / (EACH_DEAL * servers)), EACH_DEAL


def prefill_ms(port: int, prompts: Prompts) -> float:
    """Milliseconds of a request of one token."""
    began = time.perf_counter()
    generate(port, prompts[0], 1)
    return (time.perf_counter() - began) * 1e3


def tokens_per_s(port: int, prompts: Prompts, new_tokens: int) -> float:
    """New tokens per second of requests sent at once."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        began = time.perf_counter()
        count = sum(pool.map(lambda prompt: generate(port, prompt, new_tokens), prompts))
        return count / (time.perf_counter() - began)


def request(prompt: list[int], new_tokens: int, **more: Any) -> str:
    """The body of a request to ``/generate`` for exactly so many tokens."""
    sampling = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
    return json.dumps({"input_ids": prompt, "sampling_params": sampling, **more})


@contextlib.contextmanager
def asked(port: int, body: str) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request to ``/generate``, which has just begun. Raises ``OSError`` or :class:`LaunchError`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request("POST", "/generate", body, {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise LaunchError(f"/generate answered {response.status}: {response.read(200).decode(errors='replace')}")
        yield response
    finally:
        connection.close()


def generate(port: int, prompt: list[int], new_tokens: int) -> int:
    """Sends one request to ``/generate``. Returns how many tokens came. Raises as :func:`asked`."""
    with asked(port, request(prompt, new_tokens)) as response:
        return int(json.loads(response.read())["meta_info"]["completion_tokens"])


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
