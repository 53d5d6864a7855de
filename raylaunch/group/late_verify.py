"""Verifies, while a group serves and no request runs, the shapes that its launch has left for then."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass

from raylaunch.frontends.base import Frontend
from raylaunch.group.driver import recorded
from raylaunch.group.ranks import RankGroup
from raylaunch.protocol import Gate, LaunchPlan, Release, RoundName, Step, VerifyFacts, Violation
from raylaunch.protocol.rules import check
from raylaunch.report import LaunchReport

QUIET_S = 0.2  # without a request before a shape begins
LONG_S = 60.0  # after which nobody is thought to ask again and again
SHARE = 0.02  # of the time in which requests run, at most, is what they wait for shapes
LOOK_S = 0.02
RELEASE_S = 10.0

log = logging.getLogger(__name__)


@dataclass
class Delay:
    """What shapes cost requests that come while one is verified: who asks every second would meet one each time.

    Attributes:
        ran_s: for how long requests have run.
        waited_s: for how long they have waited for a shape to end.
        longest_s: for how long at once.
    """

    ran_s: float = 0.0
    waited_s: float = 0.0
    longest_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.waited_s, self.longest_s = self.waited_s + seconds, max(self.longest_s, seconds)

    def allows(self, quiet_s: float) -> bool:
        """Whether another shape may be begun after so long without a request."""
        if quiet_s < QUIET_S:
            return False
        return self.waited_s + self.longest_s <= SHARE * self.ran_s or quiet_s >= LONG_S


class LateVerification:
    """Steps all ranks through one shape at a time, on a thread of its own.

    Attributes:
        violation: the rule that a shape has broken; its ranks stand at their gate then, and answer nothing more.
    """

    def __init__(self, group: RankGroup, plan: LaunchPlan, report: LaunchReport, frontend: Frontend) -> None:
        self._group, self._plan, self._report, self._frontend = group, plan, report, frontend
        self._history = {record.step: record.arrivals for record in report.steps}
        self._stopped = threading.Event()
        self._delay = Delay()
        self.violation: Violation | None = None
        self._thread = threading.Thread(target=self._run, name="raylaunch-verify", daemon=True)

    def start(self) -> None:
        """Begins, if a shape is left."""
        if self._report.unverified:
            self._thread.start()

    def stop(self) -> None:
        """Ends it, whatever is left."""
        self._stopped.set()
        with contextlib.suppress(RuntimeError):  # never started
            self._thread.join()

    def _run(self) -> None:
        try:
            for name, shape in self._plan.shapes:
                while f"{name} {shape}" in self._report.unverified:
                    if self._stopped.is_set() or not self._verify(name, shape):
                        return
            log.info("all shapes are verified")
        except (Exception, SystemExit):  # the second of Ray, where it is shut down meanwhile
            if not self._stopped.is_set():
                log.exception("the other shapes cannot be verified")

    def _verify(self, name: RoundName, shape: int) -> bool:
        """Verifies a shape, unless requests come first. Whether the group may go on."""
        if not self._quiet() or not self._frontend.verify(name, shape):
            return not self._stopped.is_set()
        step = Step(Gate.LATER, name, shape)
        free = time.monotonic()  # when no request was seen to wait, last

        def look(_: tuple[int, ...]) -> float:
            nonlocal free
            free = free if self._frontend.busy() else time.monotonic()
            return 0.0 if self._stopped.is_set() else LOOK_S

        outcome = self._group.advance(None, look)
        if not outcome.complete:
            return False  # why a rank is lost is found by those who watch the group
        arrivals = tuple(outcome.arrivals[rank] for rank in sorted(outcome.arrivals))
        self.violation = check(self._plan, step, arrivals, self._history)
        if self.violation is not None:
            return False
        self._group.finish(Release(step, ()), RELEASE_S)
        if self._frontend.busy():
            self._delay.add(time.monotonic() - free)
        if isinstance(facts := arrivals[0].facts, VerifyFacts) and facts.shapes:
            self._report.steps.append(recorded(step, arrivals))
        return True

    def _quiet(self) -> bool:
        """Waits until no request has run for a while, and none would wait for too long; False if that is not to be
        waited for any more."""
        since = looked = time.monotonic()
        while not self._stopped.wait(LOOK_S):
            now = time.monotonic()
            if self._frontend.busy():
                self._delay.ran_s += now - looked
                since = now
            elif self._delay.allows(now - since):
                return True
            looked = now
        return False
