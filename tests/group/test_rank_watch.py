"""Ranks that live and do not answer are noticed in time, and none that answers late but in time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from raylaunch.group.rank_watch import LOOK_S, RankWatch


class Ranks:
    """Two ranks; each answers at once, after a while, or no more from some time on."""

    def __init__(self, late_s: float = 0.0, silent_from: float = float("inf")) -> None:
        self.now, self.late_s, self.silent_from = 0.0, late_s, silent_from
        self.posed: list[float] = []

    def pose(self, method: str, ranks: list[int]) -> Mapping[Any, int]:
        assert method == "health"
        self.posed.append(self.now)
        return {(rank, self.now): rank for rank in ranks}

    def answers(self, calls: Mapping[Any, int], timeout_s: float) -> dict[int, Any]:
        assert timeout_s == 0, "nobody waits"
        found = {}
        for (rank, asked), _ in calls.items():
            answered = asked + (self.late_s if rank == 1 else 0.0)
            if answered <= self.now and not (rank == 1 and answered >= self.silent_from):
                found[rank] = rank
        return found


def silent_at(ranks: Ranks, watch: RankWatch, until: float) -> float | None:
    """When rank 1 was given up."""
    while ranks.now < until:
        states = watch.poll(ranks.now)
        if states is not None and set(states) != {0, 1}:
            assert set(states) == {0}
            return ranks.now
        ranks.now += LOOK_S
    return None


@pytest.mark.parametrize("health_s", [4.0, 10.0, 60.0])
@pytest.mark.parametrize("late_share", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("stops_at", [20.0, 20.4, 21.3, 22.9, 24.9])
def test_a_rank_that_stops_answering_is_noticed_in_time(health_s: float, late_share: float, stops_at: float) -> None:
    ranks = Ranks(late_share * health_s, silent_from=stops_at)
    noticed = silent_at(ranks, RankWatch(ranks, [0, 1], health_s), 200.0)
    assert noticed is not None
    assert noticed - stops_at <= health_s


@pytest.mark.parametrize("health_s", [1.0, 4.0, 10.0, 60.0])
def test_one_that_is_late_is_not_given_up(health_s: float) -> None:
    ranks = Ranks(late_s=0.49 * health_s)
    watch = RankWatch(ranks, [0, 1], health_s)
    assert silent_at(ranks, watch, 100.0) is None
    assert len(ranks.posed) <= 100.0 / watch.every_s + 1


def test_a_group_that_is_closed_meanwhile_has_nothing_to_tell() -> None:
    class Closed(Ranks):
        def pose(self, method: str, ranks: list[int]) -> Mapping[Any, int]:
            return {}

    watch = RankWatch(Closed(), [0, 1], 10.0)
    assert [watch.poll(now) for now in (0.0, 5.0, 50.0)] == [None] * 3
