"""Ranks that are killed beside spares: whose processes take their place, and how long a client waits; both engines."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from raylaunch import Engine
from raylaunch.group.standby import Standby

READY_S = 150.0


@contextmanager
def streaming(engine: Engine, tokens: int) -> Iterator[list[float]]:
    """When tokens come of requests that follow one another, on the monotonic clock."""
    came, done = list[float](), threading.Event()

    def ask() -> None:
        while not done.is_set():
            for _ in engine.stream("1+1=", max_new_tokens=tokens, ignore_eos=True):
                came.append(time.monotonic())

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield came
    finally:
        done.set()
        asking.join(READY_S)


def pids_of(engine: Engine) -> list[int]:
    return [place.pid for place in engine.report.places]


def standby_of(engine: Engine) -> Standby:
    runtime = engine._supervisor._runtime
    assert runtime is not None
    return runtime.standby


def spare_pids(engine: Engine, count: int) -> list[int]:
    """Processes of the spares, once so many have imported everything."""
    end, standby = time.monotonic() + READY_S, standby_of(engine)
    while engine.report.standby.ranks < count:
        assert time.monotonic() < end, "no ranks stand by"
        time.sleep(0.05)
    return [spare.process.pid for spare in standby.spares if spare.process]


def without_spares(engine: Engine) -> None:
    """From here on the engine rebuilds as if it had never had any."""
    standby = standby_of(engine)
    standby.per_rank = 0
    time.sleep(1)  # the thread that looks after them has seen it
    standby.close(10)


def said(pauses: Sequence[float]) -> str:
    return f"seconds from a SIGKILL to the next token: {', '.join(f'{one:.1f}' for one in pauses)}"


def lose(engine: Engine, rank: int, came: list[float]) -> float:
    """Kills a rank; seconds until the next token of a request that was running."""
    before, struck = engine.restarts, time.monotonic()
    os.kill(pids_of(engine)[rank], signal.SIGKILL)
    while engine.restarts == before:
        assert time.monotonic() < struck + 30
        time.sleep(0.01)
    lost = time.monotonic()
    assert engine.wait_ready(READY_S), engine.last_error
    while came[-1] < lost:
        assert time.monotonic() < lost + READY_S
        time.sleep(0.01)
    return min(at for at in came if at > lost) - struck
