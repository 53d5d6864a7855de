"""Reports that slow work goes on, by watching something that only grows while it does."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import psutil

from raylaunch_actors.gate import RankGate
from raylaunch_actors.preload import short_imports

LOOK_S = 2.0
COMPILERS = ("nvcc", "cicc", "ptxas", "ninja", "cudafe++", "fatbinary", "gcc", "g++", "cc1plus", "ld", "clang")


@contextlib.contextmanager
def reported(gate: RankGate, activity: str | None, measure: Callable[[], Hashable]) -> Iterator[None]:
    """While the block runs, reports progress whenever ``measure()`` has changed: a hang looks like a hang.

    Args:
        activity: what is done meanwhile; None leaves what was said last.
    """

    def report() -> None:
        if activity is None:
            gate.alive()
        else:
            gate.progress(activity)

    report()
    done = threading.Event()

    def watch() -> None:
        last = measure()
        while not done.wait(LOOK_S):
            now = measure()
            if now != last:
                report()
            last = now

    watcher = threading.Thread(target=watch, name="raylaunch-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@contextlib.contextmanager
def importing(gate: RankGate, name: str) -> Iterator[None]:
    """Around imports that take long."""
    with reported(gate, f"importing {name}", lambda: len(sys.modules)), short_imports():
        yield


def bytes_below(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """Sizes and allocated blocks of all files in a folder: of a file made at its full size only the blocks grow."""
    nbytes = blocks = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):  # files come and go while something is fetched
                status = os.lstat(os.path.join(root, name))
                nbytes, blocks = nbytes + status.st_size, blocks + status.st_blocks
    return nbytes, blocks


def bytes_fetched(model: str) -> tuple[int, int]:
    """``bytes_below`` the folder in which the Hub's local cache keeps a model; zeros if it keeps none of that name."""
    from huggingface_hub import constants

    return bytes_below(Path(os.path.expanduser(constants.HF_HUB_CACHE)) / f"models--{model.replace('/', '--')}")


def compilers_work() -> float:
    """CPU seconds of the compilers that this process has started, directly or not."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.name() in COMPILERS:
                times = child.cpu_times()
                total += times.user + times.system
    return total
