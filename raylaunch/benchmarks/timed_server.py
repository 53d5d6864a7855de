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
from raylaunch.errors import LaunchError, launch_error
from raylaunch.sglang.children import end, how_ended, last_lines
from raylaunch.values.api_key import VARIABLE

READY_S = 1800.0
ANSWER_S = 600.0
END_S = 90.0
ENDED_S = 5.0
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


class NotReady(LaunchError):
    """A server that listens, and says that it cannot answer yet: 503."""


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        log: what it prints.
        began: when it was started, on the monotonic clock.
    """

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    began: float

    def lost(self, why: str = "") -> LaunchError:
        """What there is to say of it once it does not answer: whether it has ended and how, and the end of its log."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDED_S)  # its connections are closed before it has ended
        code = self.process.returncode
        how = "still runs" if code is None else how_ended(code)
        why = f"; {' '.join(why.split())}" if why else ""
        return LaunchError(f"the server {self.name} {how}{why}:\n{last_lines(self.log, LOG_LINES)}")


def measure(servers: Mapping[str, Command], folder: Path, work: Work) -> dict[str, Served]:
    """Starts servers one after another, sends the same requests to each of them in turn, and ends them.

    Several can be told apart by less than what the machine's speed changes by meanwhile. Each must leave the others
    their part of the GPUs' memory, and gets its part of the processors: see :mod:`raylaunch.benchmarks.processors`.

    Args:
        servers: by name.
        folder: gets what each prints, in ``<name>.log``.
    Raises:
        LaunchError: one did not start, or did not answer; with how it ended, and the end of its log.
    """
    draw = random.Random(0)  # the same prompts at every start

    def prompts(count: int, length: int) -> Prompts:
        return [[draw.randrange(FIRST_TOKEN_ID, work.vocabulary) for _ in range(length)] for _ in range(count)]

    up: list[Server] = []
    ready_s = {}
    with contextlib.ExitStack() as stack:
        for name, command in servers.items():
            server = stack.enter_context(running(name, command, folder))
            wait_for_answer(server, prompts(1, 4)[0])
            ready_s[name] = time.monotonic() - server.began
            up.append(server)
        side_by_side = SideBySide(up)
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
    """Servers that are up at the same time and are asked the same in turn."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self._families = [family(server.process.pid) for server in servers]
        self._deals = deals(sorted(os.sched_getaffinity(0)), len(servers), random.Random(0))

    def medians(
        self, value: Callable[[int, Prompts], float], prompts: Callable[[], Prompts], count: int
    ) -> dict[str, list[float]]:
        """By server, medians of a value: one for each deal of the processors, or one in all if there is one server.

        Args:
            value: made of a port and prompts; the first after a deal is not counted.
            count: how many values of each server count, at least.
        """
        turns, each = plan(count, len(self._servers))
        medians: dict[str, list[float]] = {server.name: [] for server in self._servers}
        for _ in range(turns):
            self._deal()
            taken: dict[str, list[float]] = {server.name: [] for server in self._servers}
            for turn in range(each + 1):
                asked = prompts()
                in_turn = sorted(self._servers, key=lambda one: one.name, reverse=turn % 2 == 1)
                for server in in_turn:  # in case one disturbs the next
                    try:
                        taken[server.name].append(value(server.port, asked))
                    except (OSError, http.client.HTTPException, LaunchError) as error:
                        raise server.lost(launch_error(error).summary) from None
            for name, values in taken.items():
                medians[name].append(median_high(values[1:]))
        return medians

    def _deal(self) -> None:
        if len(self._servers) > 1:
            for pids, processors in zip(self._families, next(self._deals), strict=True):
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
            kind = NotReady if response.status == 503 else LaunchError
            raise kind(f"/generate answered {response.status}: {response.read(200).decode(errors='replace')}")
        yield response
    finally:
        connection.close()


def generate(port: int, prompt: list[int], new_tokens: int) -> int:
    """Sends one request to ``/generate``. Returns how many tokens came. Raises as :func:`asked`."""
    with asked(port, request(prompt, new_tokens)) as response:
        return int(json.loads(response.read())["meta_info"]["completion_tokens"])


def wait_for_answer(server: Server, prompt: list[int]) -> None:
    """Returns with the first answer. Raises :class:`LaunchError` with the log's end if there is none."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise server.lost()
        try:
            generate(server.port, prompt, 1)
        except (OSError, http.client.HTTPException, NotReady):  # it does not listen yet, or is not ready
            time.sleep(POLL_S)
        except LaunchError as error:  # what it says will not change
            raise server.lost(error.summary) from None
        else:
            return
    raise server.lost(f"it gave no answer within {READY_S:g} s")


@contextlib.contextmanager
def running(name: str, command: Command, folder: Path) -> Iterator[Server]:
    """A server in a process group of its own; at the end the whole group is gone."""
    port, log = free_port(), folder / f"{name}.log"
    environment = dict(os.environ)
    environment.pop(VARIABLE, None)  # a server with a key refuses those who ask without one
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            command(port), stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    try:
        yield Server(name, process, port, log, began)
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
