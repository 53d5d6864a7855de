"""Signals sent to ranks from outside, and what must be said of them: for both engines, on CPUs and on GPUs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from signal import Signals

from raylaunch import Engine, LaunchError, RaylaunchError
from raylaunch.group.diagnosis import CRASHES
from raylaunch.group.driver import StepListener
from raylaunch.protocol import Phase, Step
from tests.busy import patient

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


def within_s(number: Signals, health_s: float) -> float:
    """Seconds within which a loss must be noticed. One that crashes writes down the stacks of its threads first."""
    if number is Signals.SIGSTOP:
        return health_s
    return 1.0 if number in CRASHES else 0.3


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


def assert_named(loss: Loss, rank: int, number: Signals, struck: Sequence[int], health_s: float) -> None:
    """The right rank in the right words, in time, and no other but those that were struck as well."""
    code = "F08" if number is Signals.SIGSTOP else "F07"
    assert (loss.error.rank, loss.error.code, loss.error.phase) == (rank, code, "SERVE"), loss.error
    assert f"rank {rank} " in loss.error.headline(), loss.error
    assert WORDS[number] in loss.error.headline(), loss.error
    assert loss.unready_s < patient(within_s(number, health_s))
    for text in (loss.first, loss.error.headline()):
        assert {int(one) for one in re.findall(r"\brank (\d+)", text)} <= set(struck), text
    if len(struck) > 1:
        assert all(f"rank {one}" in loss.error.headline() for one in struck), loss.error


def strike_each(engine: Engine, plan: Iterable[tuple[Signals, Sequence[int]]], again_s: float, health_s: float) -> None:
    """Sends one signal after the other to a group that is rebuilt each time, and judges what is said of it.

    Args:
        plan: signals, and the ranks that get it at the same time.
        again_s: seconds that a rebuild may take.
        health_s: the group's ``deadlines.health``.
    """
    for number, ranks in plan:
        loss = strike(engine, ranks, number)
        if loss.error.rank in ranks:  # of two that die at once, whichever the kernel ended first
            assert_named(loss, loss.error.rank, number, ranks, health_s)
        else:
            raise AssertionError(f"rank {loss.error.rank} is blamed for {number.name} to {ranks}\n{loss.error}")
        assert engine.wait_ready(again_s), engine.last_error
        print(f"  serving again {time.time() - engine.failures[-1][0]:.1f} s after that", flush=True)


def cut_off(make: Callable[[StepListener], Engine], number: Signals, rank: int, phases: Sequence[Phase]) -> None:
    """Starts an engine whose launch is ended by a signal to a rank once in each phase, and tried again each time; what
    was said of each attempt is judged. In the end it serves.

    Args:
        make: makes an engine with enough restarts, and a listener that is told before each step.
    """
    left, due, errors = list(phases), list(phases[:1]), dict[Phase, LaunchError]()

    def listener(step: Step, index: int, steps: int) -> None:
        if index == 0 and left and not due:  # the next attempt
            errors[left.pop(0)] = known()
            due.extend(left[:1])
        if due and step.phase is due[0]:
            due.clear()
            os.kill(engine.report.places[rank].pid, number)

    def known() -> LaunchError:
        error = engine.last_error
        assert error is not None
        error = error.followers[-1] if error.followers else error
        print(f"{number.name} to rank {rank}: {error.headline()}", flush=True)
        return error

    engine = make(listener)
    with engine:
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"
    assert list(errors) == list(phases)
    for phase, error in errors.items():
        assert (error.rank, error.code, error.phase) == (rank, "F06", phase.name), error
        assert WORDS[number] in error.headline(), error


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
