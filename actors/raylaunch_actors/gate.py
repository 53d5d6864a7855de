"""Where a rank stops and waits for its peers.

The rank's own thread calls :meth:`RankGate.arrive` and sleeps there; the driver's ``advance`` call, on a control
thread, wakes it up and waits for its next arrival. Nothing here runs once the last gate has been released.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raylaunch.errors import RankFault
from raylaunch.protocol import Arrival, Facts, Failure, Gate, LaunchPlan, Release, RoundName, RoundPlan, Step
from raylaunch_actors import shortage
from raylaunch_actors.secondary_failures import lost_its_peers

MOST_DID = 16


@dataclass(frozen=True)
class RankState:
    """What a rank is doing, as its control threads see it.

    Attributes:
        step: the gate it stands at, or left last.
        waiting: whether it stands at a gate.
        activity: what it reported last, such as ``loading 12 of 40 tensors``.
        progress: grows with every report and every gate: a rank whose count grows is not hung.
        gates: how many it has come to, those included that it may pass alone: who has come to fewest is behind.
        counters: what the running engine counts.
    """

    rank: int
    step: Step | None
    waiting: bool
    activity: str
    progress: int
    gates: int
    counters: dict[str, int]


class RankGate:
    """One rank's gate. ``arrive``, ``progress`` and ``fail`` are the rank's; ``advance`` and ``state`` the driver's.

    Attributes:
        read_counters: gives what the running engine counts.
        out_of_memory: the words for an error that says that memory has run out; "" for any other.
    """

    def __init__(self, rank: int, plan: LaunchPlan) -> None:
        self.rank, self.plan = rank, plan
        self.out_of_memory: Callable[[LaunchPlan, BaseException, Step | None], str] = lambda *_: ""
        self.read_counters: Callable[[], dict[str, int]] = dict
        self.stop_requested = threading.Event()
        self._changed = threading.Condition()
        self._report: Arrival | Failure | None = None
        self._release: Release | None = None
        self._passed: Step | None = None
        self._step: Step | None = None
        self._at: Step | None = None  # the same, or one that it may pass alone
        self._left = time.time()
        self._activity = "starting"
        self._did: list[tuple[str, float]] = []
        self._progress = 0
        self._gates = 0
        self._serving = False

    # ---- the rank's own thread

    def set_rounds(self, rounds: tuple[RoundPlan, ...]) -> None:
        """Takes note of the rounds that this rank has told the driver at WARMED."""
        self.plan = self.plan.with_rounds(rounds)

    def arrive(
        self,
        gate: Gate,
        facts: Facts = None,
        *,
        round: RoundName | None = None,
        shape: int | None = None,
        iteration: int | None = None,
        offer: Any = None,
    ) -> Release:
        """Reports an arrival and blocks until the driver releases it; returns all ranks' offers."""
        self._at = step = Step(gate, round, shape, iteration)
        self._gates += 1
        if gate is Gate.ITERATION and iteration is not None and not self.plan.stops_at(round or "", iteration):
            self.progress(f"capturing {step}")
            return Release(step, ())
        arrival = Arrival(self.rank, step, facts, offer, self._left, time.time(), tuple(self._did))
        self._did.clear()
        with self._changed:
            if step == self._passed:  # LATER comes again to a shape that requests kept from being verified
                self._passed = None
            self._report, self._step, self._release = arrival, step, None
            self._progress += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._release is not None)
            release = self._release
            self._left = time.time()
            if not self._serving:
                self._activity = f"left {step}"
        assert release is not None
        return release

    def progress(self, activity: str) -> None:
        """Says that the rank is alive and what it does: extends the phase's deadline."""
        if activity != self._activity and len(self._did) < MOST_DID:
            self._did.append((activity, time.time()))
        self._activity = activity
        self._progress += 1

    def alive(self) -> None:
        """Says that the rank goes on with what it said last."""
        self._progress += 1

    def fail(self, error: BaseException) -> Failure:
        """Reports the error that ends this rank; the first one counts. Never waits."""
        if isinstance(self._report, Failure):
            return self._report
        code, message = error.code if isinstance(error, RankFault) else None, str(error)
        scarce = self.out_of_memory(self.plan, error, self._at)
        if scarce:
            code, message = None if self._serving else shortage.CODE, f"{scarce}\n{message}"
        failure = Failure(
            rank=self.rank,
            step=self._at,
            error=type(error).__name__,
            message=message if message.strip() else repr(error),
            code=code,
            secondary=not scarce and lost_its_peers(error),
            traceback="".join(traceback.format_exception(error)),
            when=time.time(),
        )
        with self._changed:
            self._report = failure
            self._changed.notify_all()
        return failure

    # ---- control threads

    def advance(self, release: Release | None) -> Arrival | Failure:
        """Releases the rank (None: it has not arrived anywhere yet) and waits for what it reports next."""
        with self._changed:
            self._let_go(release)
            self._changed.wait_for(lambda: self._report is not None)
            assert self._report is not None
            return self._report

    def finish(self, release: Release) -> None:
        """Releases the rank from the last gate."""
        with self._changed:
            self._let_go(release)
            self._serving = True
            self._activity = "serving"

    def _let_go(self, release: Release | None) -> None:
        if release is None or release.step == self._passed:
            return  # the second where an agent that is gone has released it before the driver does
        if isinstance(self._report, Arrival):
            if self._report.step != release.step:
                raise RankFault(None, f"rank {self.rank} stands at {self._report.step}, not at {release.step}")
            self._report, self._release, self._passed = None, release, release.step
            self._progress += 1
            self._changed.notify_all()

    def state(self) -> RankState:
        """A snapshot, for health questions."""
        waiting = self._release is None and isinstance(self._report, Arrival)
        return RankState(
            self.rank,
            self._step,
            waiting,
            self._activity,
            self._progress,
            self._gates,
            self.read_counters(),
        )
