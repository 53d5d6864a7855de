"""How a group of ranks is, in words and counters that may be asked for at any time."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from raylaunch.errors import LaunchError


class Condition(enum.StrEnum):
    """What a supervised group is in."""

    NEW = "new"
    LAUNCHING = "launching"
    READY = "ready"
    REBUILDING = "rebuilding"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def starting(self) -> bool:
        """Whether a group is being launched, for the first time or again."""
        return self in (Condition.LAUNCHING, Condition.REBUILDING)

    @property
    def final(self) -> bool:
        """Whether there will be no group any more."""
        return self in (Condition.FAILED, Condition.STOPPED)


@dataclass(frozen=True)
class RankHealth:
    """One rank's health as last seen. ``counters`` are the engine's."""

    rank: int
    answers: bool
    activity: str
    counters: dict[str, int]


@dataclass(frozen=True)
class Health:
    """Whether requests are answered now, and if not why.

    Attributes:
        ready: a request sent now would be served.
        condition: such as ``ready``.
        reason: why it is not ready, in one line.
        ranks: each rank's own answer, when asked for.
        restarts_left: how often a lost group will still be rebuilt.
        requests: running or waiting.
        replicas: each group's own where there are several, with its ranks.
    """

    ready: bool
    condition: Condition
    reason: str
    ranks: tuple[RankHealth, ...]
    restarts_left: int
    requests: int
    replicas: tuple[Health, ...] = ()

    def refusal(self, waits: bool) -> str:
        """Why a request sent now is not taken; "" if it is.

        Args:
            waits: requests wait for a group that is rebuilt.
        """
        taken = self.ready or (waits and self.condition is Condition.REBUILDING)
        return "" if taken else f"the engine is not ready: {self.reason}"

    def with_ranks(self, ranks: tuple[RankHealth, ...]) -> Health:
        """The same with what the ranks have said: not ready if one does not answer."""
        silent = next((f"rank {rank.rank} does not answer" for rank in ranks if not rank.answers), "")
        if self.ready and silent:
            return replace(self, ready=False, reason=silent, ranks=ranks)
        return replace(self, ranks=ranks)


def readiness(
    condition: Condition, error: LaunchError | None, failure: LaunchError | None, problems: Iterable[str]
) -> tuple[Condition, str]:
    """What a group is in, and why requests are not answered; "" if they are. Nothing else decides that.

    Args:
        condition: as its supervisor knows it.
        error: that it was lost by, or could not be launched for.
        failure: why the frontend can use no ranks any more; its supervisor learns of it a moment later.
        problems: what else keeps it from answering; empty ones are none.
    """
    if condition is Condition.READY and failure is not None:
        condition, error = Condition.FAILED, failure
    if error is not None and condition is not Condition.READY:
        return condition, error.headline()
    return condition, next(filter(None, problems), "" if condition is Condition.READY else condition.value)


BEST_FIRST = (
    Condition.READY, Condition.REBUILDING, Condition.LAUNCHING, Condition.NEW, Condition.STOPPED, Condition.FAILED,
)  # fmt: skip


def standing(health: Health) -> tuple[bool, int]:
    """The least is that of the group which can do most for a request."""
    return not health.ready, BEST_FIRST.index(health.condition)


def joined(healths: Sequence[Health]) -> Health:
    """The health of all replicas: that of the one which can do most for a request, with the counts of all."""
    best = min(healths, key=standing)
    left, requests = sum(one.restarts_left for one in healths), sum(one.requests for one in healths)
    return replace(best, ranks=(), restarts_left=left, requests=requests, replicas=tuple(healths))
