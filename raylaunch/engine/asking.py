"""Asks the ranks of a group how they are, for whoever wants to know now."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from raylaunch.background import Background
from raylaunch.engine.health import RankHealth
from raylaunch.group.ranks import RankGroup

if TYPE_CHECKING:
    from raylaunch_actors.gate import RankState

ANSWER_S = 1.0  # for a rank to say how it is
LOOK_S = 0.05


def rank_healths(group: RankGroup, serves: Callable[[], bool]) -> tuple[RankHealth, ...]:
    """Each rank's own answer, or that it gives none; nothing of a group that ``serves`` no more, and no wait for it."""
    ranks = [member.rank for member in group.members]
    states: Mapping[int, RankState] = _answers(lambda: group.states(ranks, timeout_s=ANSWER_S), serves)
    if not serves():
        return ()
    return tuple(
        RankHealth(rank, True, states[rank].activity, states[rank].counters)
        if rank in states
        else RankHealth(rank, False, "does not answer", {})
        for rank in ranks
    )


def kept_metrics(group: RankGroup, serves: Callable[[], bool]) -> list[Any]:
    """Prometheus metrics of the engine's own that ranks on other nodes keep; none of a group that serves no more."""
    ranks = [member.rank for member in group.members]
    return [one for kept in _answers(lambda: group.ask("metrics", ranks, ANSWER_S), serves).values() for one in kept]


def _answers(ask: Callable[[], dict[int, Any]], serves: Callable[[], bool]) -> dict[int, Any]:
    asking = Background(ask)
    while not asking.done(LOOK_S):
        if not serves():
            return {}
    with contextlib.suppress(Exception, SystemExit):  # Ray's, where it is shut down meanwhile
        return dict(asking.result())
    return {}
