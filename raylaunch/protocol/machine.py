"""The state machine of one launch."""

from __future__ import annotations

from collections.abc import Sequence

from raylaunch.protocol.facts import WarmupFacts
from raylaunch.protocol.phases import Arrival, Gate, LaunchPlan, Release, Step, Violation
from raylaunch.protocol.rules import check


class Protocol:
    """The state machine of one launch. Nothing is released after the first violation, whatever arrives later."""

    def __init__(self, plan: LaunchPlan) -> None:
        self.plan = plan
        self.violation: Violation | None = None
        self.history: dict[Step, tuple[Arrival, ...]] = {}
        self._steps = tuple(plan.steps())
        self._next = 0

    @property
    def done(self) -> bool:
        """Whether every gate has been released."""
        return self._next == len(self._steps)

    @property
    def steps(self) -> tuple[Step, ...]:
        return self._steps

    def expected(self) -> Step:
        """The gate that all ranks must reach next. Raises ``IndexError`` when the launch is done."""
        return self._steps[self._next]

    def submit(self, arrivals: Sequence[Arrival]) -> Release | Violation:
        """Judges one arrival of every rank. The same violation is returned for ever after the first one."""
        if self.violation is None:
            step = self.expected() if not self.done else self._steps[-1]
            self.violation = check(self.plan, step, arrivals, self.history)
            if self.done and self.violation is None:
                self.violation = Violation(None, "ranks arrived at a gate after the last one", step)
        if self.violation is not None:
            return self.violation
        ordered = tuple(sorted(arrivals, key=lambda arrival: arrival.rank))
        self.history[step] = ordered
        self._next += 1
        facts = ordered[0].facts
        if step.gate is Gate.WARMED and self.plan.rounds_from_ranks and isinstance(facts, WarmupFacts):
            self.plan = self.plan.with_rounds(facts.rounds)
            self._steps = tuple(self.plan.steps())
        return Release(step, tuple(arrival.offer for arrival in ordered))
