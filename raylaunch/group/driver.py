"""Steps all ranks through the phases: the barrier, its deadline, and the judgement of what the ranks say."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from raylaunch.cluster.nodes import ASK_EVERY_S, NodeWatch
from raylaunch.errors import shut_down
from raylaunch.group.evidence import explain_failure, explain_violation
from raylaunch.group.ranks import RankGroup
from raylaunch.protocol import Arrival, Gate, Protocol, Release, Step, Violation, WarmupFacts
from raylaunch.report import Due, LaunchReport, StepRecord
from raylaunch.resolved import ResolvedLaunch

LOOKS = 4  # per window
NOTHING: Mapping[Gate, Callable[[Any], None]] = MappingProxyType({})
StepListener = Callable[[Step, int, int], None]
"""Told before each step: the step, its index and the number of steps."""


@dataclass
class Deadline:
    """How long one step may take: ``window`` seconds without progress, and ``ceiling`` seconds in all.

    The first look only learns the ranks' counts, so that a window needs several: a rank that works must be seen to
    do so before the window ends. One that stops is noticed after one to one and a quarter windows.
    """

    window: float
    ceiling: float
    began: float
    _end: float = 0.0
    _next_look: float = 0.0
    _seen: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._end = self.began + self.window
        self._next_look = self.began + self.window / LOOKS

    def is_due(self, now: float) -> bool:
        """Whether it is time to look at the ranks' progress counts."""
        return now >= self._next_look

    def note_progress(self, now: float, progress: dict[int, int]) -> None:
        """Takes note of the counts of the ranks that answered; extends the deadline if one has grown."""
        grown = any(count != self._seen[rank] for rank, count in progress.items() if rank in self._seen)
        self._seen.update(progress)
        self._next_look = now + self.window / LOOKS
        if grown:
            self._end = min(now + self.window, self.began + self.ceiling)

    def left(self, now: float) -> float:
        """Seconds until the next look or the end; 0 or less when the deadline has passed."""
        return min(self._end - now, max(self._next_look - now, 0.001)) if now < self._end else 0.0


def recorded(step: Step, arrivals: tuple[Arrival, ...]) -> StepRecord:
    """A step that is being released, for the report: what ranks said, without what they hand to each other, such as the
    keys of rank 0's sockets."""
    return StepRecord(step, tuple(replace(arrival, offer=None) for arrival in arrivals), time.time())


class Driver:
    """Takes a group from its first gate to its last.

    Attributes:
        resolved: the launch; its plan and what its cache holds follow once the ranks have settled them.
        stopped: asked at least once a second whether the launch is wanted no more.
        at: what is done at a gate once all ranks are there, told what rank 0 hands out; they wait until it returns.
    """

    def __init__(
        self,
        group: RankGroup,
        resolved: ResolvedLaunch,
        report: LaunchReport,
        listener: StepListener,
        stopped: Callable[[], bool] = lambda: False,
        at: Mapping[Gate, Callable[[Any], None]] = NOTHING,
    ) -> None:
        self.at = at
        self.group, self.resolved, self.protocol = group, resolved, Protocol(resolved.plan)
        self.report, self.listener, self.stopped = report, listener, stopped
        self.deadlines = resolved.config.deadlines
        self.watch = NodeWatch(group.agents, self.deadlines.health)

    def run(self) -> tuple[Arrival, ...]:
        """Runs all steps and releases every rank from the last gate; returns the arrivals there.

        Raises:
            LaunchError: the first failure or broken rule, explained, or that the launch was stopped; nothing has been
                torn down yet.
        """
        release: Release | None = None
        while not self.protocol.done:
            step = self.protocol.expected()
            if self.stopped():
                raise shut_down(step.phase.name)
            done, steps = len(self.protocol.history), len(self.protocol.steps)
            of = None if self.protocol.plan.rounds_from_ranks else steps
            self.report.due = Due(step.phase, str(step), time.time(), done, of)
            self.listener(step, done, steps)
            arrivals = self._step(release, step)
            outcome = self.protocol.submit(arrivals)
            if isinstance(outcome, Violation):
                raise explain_violation(self.group, outcome)
            release = outcome
            if (work := self.at.get(step.gate)) is not None:
                work(self.protocol.history[step][0].offer)  # rank 0's, whoever came first
            self.report.steps.append(recorded(step, self.protocol.history[step]))
            if isinstance(facts := arrivals[0].facts, WarmupFacts):
                self.resolved = replace(self.resolved, plan=self.protocol.plan, kv_tokens=facts.kv_tokens)
        assert release is not None
        self.report.shapes = tuple(f"{name} {shape}" for name, shape in self.protocol.plan.shapes)
        self._finish(release)
        return self.protocol.history[release.step]

    def _finish(self, release: Release) -> None:
        began, phase = time.monotonic(), release.step.phase
        outcome = self.group.finish(release, self.deadlines.health)
        if not outcome.complete:
            raise explain_failure(self.group, outcome, release.step, phase, time.monotonic() - began)

    def _step(self, release: Release | None, step: Step) -> tuple[Arrival, ...]:
        began = time.monotonic()
        window = self.deadlines.for_phase(step.phase.name)
        deadline = Deadline(window, window * self.deadlines.stretch, began)

        def wait(pending: tuple[int, ...]) -> float:
            if self.stopped():
                return 0.0
            if self.watch.lost() and self.group.find_lost_nodes(range(len(self.group.members))):
                return 0.0
            if deadline.is_due(time.monotonic()):
                states = self.group.states(pending, timeout_s=min(1.0, window / 4))
                deadline.note_progress(time.monotonic(), {rank: state.progress for rank, state in states.items()})
            return min(deadline.left(time.monotonic()), ASK_EVERY_S)

        outcome = self.group.advance(release, wait)
        if not outcome.complete:
            if self.stopped():
                raise shut_down(step.phase.name)
            # Inside CAPTURE a rank is in the iteration that it was let into, not yet at the gate that is due.
            left = release.step if release and release.step.gate is Gate.ITERATION else step
            raise explain_failure(self.group, outcome, left, step.phase, time.monotonic() - began)
        return tuple(outcome.arrivals.values())
