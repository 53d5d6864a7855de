"""Signals sent to ranks from outside, and what must be said of them: for both engines, on CPUs and on GPUs."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from signal import Signals

from raylaunch import Engine, LaunchError, RaylaunchError

WORDS = {
    Signals.SIGKILL: "died: killed by SIGKILL",
    Signals.SIGTERM: "died: was asked to end by SIGTERM",
    Signals.SIGHUP: "died: was asked to end by SIGHUP",
    Signals.SIGQUIT: "died: killed by SIGQUIT",
    Signals.SIGUSR2: "died: killed by SIGUSR2",
    Signals.SIGSEGV: "died: crashed: Segmentation fault (SIGSEGV)",
    Signals.SIGABRT: "died: crashed: Aborted (SIGABRT)",
    Signals.SIGBUS: "died: crashed: Bus error (SIGBUS)",
    Signals.SIGSTOP: "its process is stopped (SIGSTOP)",
}
"""What must be said of a rank that got this signal."""


@dataclass(frozen=True)
class Loss:
    """What was said of a loss: at once, and in the end; and how many seconds after the signal that began."""

    unready_s: float
    first: str
    error: LaunchError

    def __str__(self) -> str:
        return f"unready after {self.unready_s:.3f} s\n  first: {self.first}\n  final: {self.error.headline()}"


def strike(engine: Engine, ranks: Sequence[int], number: Signals, patience_s: float = 15.0) -> Loss:
    """Sends a signal to ranks of a group that serves, and waits until the loss is explained."""
    losses = len(engine.failures)
    pids = [engine.report.places[rank].pid for rank in ranks]
    sent = time.monotonic()
    for pid in pids:
        os.kill(pid, number)
    while (health := engine.health(ask_ranks=False)).ready and time.monotonic() < sent + patience_s:
        time.sleep(0.001)
    unready = time.monotonic() - sent
    assert not health.ready, f"still ready {patience_s} s after {number.name}"
    while len(engine.failures) == losses and time.monotonic() < sent + unready + 15:
        time.sleep(0.005)
    assert len(engine.failures) == losses + 1
    loss = Loss(unready, health.reason, engine.failures[-1][1])
    print(f"{number.name} to rank {', '.join(map(str, ranks))}: {loss}", flush=True)
    return loss


def assert_named(loss: Loss, rank: int, number: Signals, health_s: float = 10.0) -> None:
    """The right rank in the right words, in time, and no other at first."""
    code = "F08" if number is Signals.SIGSTOP else "F07"
    assert (loss.error.rank, loss.error.code, loss.error.phase) == (rank, code, "SERVE"), loss.error
    assert f"rank {rank} " in loss.error.headline(), loss.error
    assert WORDS[number] in loss.error.headline(), loss.error
    assert loss.unready_s < (health_s if number is Signals.SIGSTOP else 0.3)
    assert "rank" not in loss.first.replace(f"rank {rank} ", "").replace("a rank of the group", ""), loss.first


@contextlib.contextmanager
def clients(ask: Callable[[], object], number: int) -> Iterator[None]:
    """Clients that ask again and again while the block runs; that their requests fail meanwhile is no wonder."""
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            try:
                ask()
            except RaylaunchError:
                done.wait(0.05)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(30)


def resume(pids: Sequence[int]) -> None:
    """Lets stopped processes go on."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
