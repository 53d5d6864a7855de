"""How a group of ranks is, in words and figures that may be asked for at any time."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Condition(enum.Enum):
    """What a supervised group is in. ``FAILED`` and ``STOPPED`` are final."""

    NEW = "new"
    LAUNCHING = "launching"
    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class RankHealth:
    """One rank's health as last seen. ``counters`` are the engine's figures."""

    rank: int
    answers: bool
    activity: str
    counters: dict[str, int]


@dataclass(frozen=True)
class Health:
    """Whether requests are answered now, and if not why.

    Attributes:
        ready: a request sent now would be served.
        condition: ``launching``, ``ready``, ``failed``, ``stopped``.
        reason: why it is not ready, in one line.
        ranks: each rank's own answer, when asked for.
        restarts_left: how often a lost group will still be rebuilt.
        requests: running or waiting.
        replicas: each group's own where there are several, with its ranks.
    """

    ready: bool
    condition: str
    reason: str
    ranks: tuple[RankHealth, ...]
    restarts_left: int
    requests: int
    replicas: tuple[Health, ...] = ()


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
