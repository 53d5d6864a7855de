"""Whether a group that was lost is launched again, and after which pause: decided by what went before alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from raylaunch.errors import LaunchError
from raylaunch.protocol import Phase

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Budget:
    """How often a group may be launched again: ``rebuilds`` times within any ``window_s`` seconds."""

    rebuilds: int
    window_s: float = math.inf


@dataclass(frozen=True)
class Loss:
    """A group that was lost, or a launch that did not come to serve.

    Attributes:
        at: when, in seconds of a clock that only goes forward.
        error: why.
    """

    at: float
    error: LaunchError

    @property
    def served(self) -> bool:
        """Whether the group had answered requests before."""
        return self.error.phase == Phase.SERVE.name


@dataclass(frozen=True)
class Verdict:
    """What follows a loss.

    Attributes:
        again: the group is launched again,
        pause_s: after so many seconds.
        why_not: where another launch would be allowed by its error, what speaks against it.
    """

    again: bool
    pause_s: float = 0.0
    why_not: str = ""


def restart_policy(error: LaunchError, earlier: Sequence[Loss], now: float, budget: Budget) -> Verdict:
    """What follows the loss of a group, or of a launch, by ``error``.

    A group that had served is launched again at once. Between launches that never come to serve the pause doubles, and
    the second of them that fails by the same cause at the same place is the last: it would never work.

    Args:
        earlier: losses that were followed by another launch, the oldest first.
        now: on the clock of :attr:`Loss.at`.
    """
    if not error.retryable:
        return Verdict(False)
    loss = Loss(now, error)
    fruitless = [*takewhile(lambda one: not one.served, reversed([*earlier, loss]))]
    if any(same_cause(error, one.error) for one in fruitless[1:]):
        return Verdict(False, why_not="it failed twice in the same way")
    if not launches_left(earlier, now, budget):
        within = f" within {budget.window_s:g} s" if budget.rebuilds and math.isfinite(budget.window_s) else ""
        times = f"{budget.rebuilds} times{within}" if budget.rebuilds != 1 else f"once{within}"
        return Verdict(False, why_not=f"it was rebuilt {times} already" if budget.rebuilds else "")
    pause = FIRST_PAUSE_S * 2 ** (len(fruitless) - 1) if fruitless else 0.0
    return Verdict(True, min(pause, LONGEST_PAUSE_S))


def launches_left(earlier: Sequence[Loss], now: float, budget: Budget) -> int:
    """How many further launches the budget holds; it is refilled as losses get older than its window."""
    return max(0, budget.rebuilds - sum(now - one.at < budget.window_s for one in earlier))


def same_cause(one: LaunchError, other: LaunchError) -> bool:
    """Whether two launches failed by the same cause at the same place, whatever the numbers in what they say."""
    return _cause(one) == _cause(other)


def _cause(error: LaunchError) -> tuple[object, ...]:
    return error.code, error.where(), error.rank, _NUMBER.sub("#", next(iter(error.summary.splitlines()), ""))
