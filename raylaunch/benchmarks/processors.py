"""Which processors servers that are measured at the same time may use: dealt out by lot, then changed over.

On machines whose processors are shared with others, or are two threads of one core, some are faster than others. What
a process happens to run on must not be taken for what it does.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil


def deals(processors: Sequence[int], hands: int, draw: random.Random) -> Iterator[list[set[int]]]:
    """Without end: as many processors for each of ``hands``; every deal goes round, so that each has held all of it.

    Raises:
        ValueError: there are fewer processors than hands.
    """
    each = len(processors) // hands
    if not each:
        raise ValueError(f"{len(processors)} processors cannot be dealt out to {hands}")
    while True:
        mixed = draw.sample(processors, each * hands)
        dealt = [set(mixed[each * hand : each * (hand + 1)]) for hand in range(hands)]
        for turn in range(hands):
            yield dealt[turn:] + dealt[:turn]


def family(pid: int) -> list[int]:
    """A process and all that it has started, and they. Raises ``psutil.NoSuchProcess``."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def confine(pids: Sequence[int], processors: set[int]) -> None:
    """Lets every thread of these processes run on ``processors`` only; one that has ended is none."""
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), processors)
