"""A group without processes: what its ranks do is written in the test."""

from __future__ import annotations

import queue
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from raylaunch.cluster.placement import Placement
from raylaunch.group.outcome import StepOutcome
from raylaunch.group.teardown import Teardown
from raylaunch.protocol import LaunchPlan, Release
from tests.protocol.builders import arrivals


class ScriptedGroup:
    """Takes the place of a :class:`raylaunch.group.ranks.RankGroup` for the code that steps and keeps one.

    Attributes:
        plan: of the launch; ranks come to all its gates.
        hangs_at: index of the step at which no rank comes.
        finished: how the release from the last gate ends.
        lives: what :meth:`ended` returns, one after another; while it is empty all ranks live.
        closed: how often it was closed.
    """

    def __init__(self, plan: LaunchPlan, hangs_at: int = -1) -> None:
        self.plan, self.hangs_at = plan, hangs_at
        self.members = [SimpleNamespace(rank=rank, process=None) for rank in range(plan.world_size)]
        self.agents: dict[str, Any] = {}
        self.placement = Placement(None, (), owned=False)
        self.lost_nodes: set[str] = set()
        self.ended_raylets: set[str] = set()
        self.finished = StepOutcome()
        self.lives: queue.SimpleQueue[StepOutcome] = queue.SimpleQueue()
        self.closed = 0
        self._steps = iter(plan.steps())
        self._taken = 0

    def advance(self, leave: Release | None, wait: Callable[[tuple[int, ...]], float]) -> StepOutcome:
        ranks = tuple(range(self.plan.world_size))
        self._taken += 1
        if self._taken - 1 == self.hangs_at:
            while wait(ranks) > 0:
                pass
            return StepOutcome(pending=ranks)
        return StepOutcome({one.rank: one for one in arrivals(self.plan, next(self._steps))})

    def finish(self, leave: Release, timeout_s: float) -> StepOutcome:
        return self.finished

    def ended(self, timeout_s: float) -> StepOutcome:
        try:
            return self.lives.get(timeout=timeout_s)
        except queue.Empty:
            return StepOutcome()

    def pose(self, method: str, ranks: object) -> dict[Any, int]:
        return {}

    def states(self, ranks: object, timeout_s: float) -> dict[int, Any]:
        return {}

    def stop(self, timeout_s: float) -> bool:
        return True

    def close(self, deadline_s: float) -> Teardown:
        self.closed += 1
        return Teardown(self.plan.world_size, 1)
