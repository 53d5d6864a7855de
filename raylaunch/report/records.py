"""What a report is made of: plain data that the driver notes while a launch goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from raylaunch.protocol import Arrival, Phase, Step


@dataclass(frozen=True)
class StepRecord:
    """One barrier: who arrived when, and when all were released. Seconds since the epoch."""

    step: Step
    arrivals: tuple[Arrival, ...]
    released: float


@dataclass(frozen=True)
class Span:
    """Something the driver did by itself, such as starting actors. Seconds since the epoch."""

    name: str
    start: float
    end: float
    phase: Phase = Phase.PLACE


@contextmanager
def timed(spans: list[Span], name: str) -> Iterator[None]:
    """Adds the time that the block takes."""
    start = time.time()
    try:
        yield
    finally:
        spans.append(Span(name, start, time.time()))


@dataclass(frozen=True)
class Due:
    """What a launch works towards, as whoever takes it there has said before.

    Attributes:
        phase: that it belongs to.
        what: in words.
        since: when it began, seconds since the epoch.
        done: steps that all ranks have taken.
        of: steps in all; None outside of them, and as long as only the ranks' engine knows.
    """

    phase: Phase
    what: str
    since: float
    done: int = 0
    of: int | None = None


@dataclass(frozen=True)
class RankPlace:
    """Where a rank runs, in a process that is there ``since`` (seconds since the epoch); ``adopted``: it stood by."""

    rank: int
    node: str
    pid: int
    device: str = ""
    adopted: bool = False
    since: float = 0.0


@dataclass(frozen=True)
class Standing:
    """How many ranks stand by, and the bytes that their processes have in memory together, what they share counted for
    each."""

    ranks: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class KeptWeights:
    """On how many nodes weights are kept in memory, how many bytes together, and whether the kernel may take none."""

    nodes: int = 0
    nbytes: int = 0
    locked: bool = True
