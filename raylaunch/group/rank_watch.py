"""Notices ranks that live and do not answer: stuck in native code, stopped, or cut off; and those that do no work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from raylaunch_actors.gate import RankState

ROUNDS = 5  # questions within the time that a rank may leave one unanswered
LONGEST_S = 5.0  # between two questions
LOOK_S = 0.5  # between two looks at what came back, at most


class AsksRanks(Protocol):
    """What a :class:`raylaunch.group.ranks.RankGroup` is here."""

    def pose(self, method: str, ranks: list[int]) -> Mapping[Any, int]: ...

    def answers(self, calls: Mapping[Any, int], timeout_s: float) -> dict[int, Any]: ...


@dataclass
class RankWatch:
    """Asks all ranks how they are, again and again, and never waits for the answers.

    A rank that stops answering is noticed within ``health_s`` of its last sign of life, the wait for the next question
    included.

    Attributes:
        group: the ranks' group.
        ranks: to be asked.
        health_s: seconds after which a rank that does not answer must have been noticed.
    """

    group: AsksRanks
    ranks: list[int]
    health_s: float
    _calls: dict[Any, int] = field(default_factory=dict)
    _states: dict[int, RankState] = field(default_factory=dict)
    _asked: float = float("-inf")

    @property
    def every_s(self) -> float:
        """Seconds from one question to the next."""
        return min(LONGEST_S, self.health_s / ROUNDS)

    @property
    def patience_s(self) -> float:
        """Seconds that one question may stay unanswered."""
        return max(self.health_s - self.every_s - LOOK_S, self.health_s / 2)

    def poll(self, now: float) -> dict[int, RankState] | None:
        """The ranks' states once all have answered a question; those of some, if the others are late for good. None as
        long as there is nothing to tell."""
        if not self._calls:
            if now - self._asked >= self.every_s:
                self._calls, self._states, self._asked = dict(self.group.pose("health", self.ranks)), {}, now
            return None
        self._states |= self.group.answers(self._calls, 0)
        if set(self._states) == set(self.ranks) or now - self._asked > self.patience_s:
            self._calls = {}
            return self._states
        return None


@dataclass
class Stall:
    """Notices that requests run and nothing moves: no step is made, and no kernel is compiled for one.

    Attributes:
        unready_s: seconds without a step after which the group is not ready.
        lost_s: seconds after which it is lost.
        reason: why the group is not ready, or "".
    """

    unready_s: float
    lost_s: float
    reason: str = ""
    _moved: Sequence[tuple[int, int]] = ()
    _since: float = 0.0

    def observe(self, now: float, counters: Sequence[Mapping[str, int]]) -> bool:
        """Takes note of all ranks' counters, rank 0's first. Returns whether the group must be given up."""
        moved = [(rank.get("steps", 0), rank.get("compiling", 0)) for rank in counters]
        running = counters[0].get("running", 0)
        if running == 0 or moved != self._moved:
            self._moved, self._since, self.reason = moved, now, ""
            return False
        stuck = now - self._since
        self.reason = f"no step for {stuck:.0f} s while {running} requests run" if stuck >= self.unready_s else ""
        return stuck >= self.lost_s

    def lasts(self, now: float) -> float:
        """Seconds since the last step, or since there was nothing to do."""
        return now - self._since
