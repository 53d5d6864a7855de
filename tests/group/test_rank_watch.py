"""Ranks that live and do not answer are noticed in time, and none that answers late but in time. A group whose requests
make no progress is unready first, and given up later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from raylaunch.group.rank_watch import LOOK_S, RankWatch, Stall


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


def both(**counters: int) -> list[dict[str, int]]:
    """Two ranks that say the same."""
    return [counters, counters]


def test_no_step_while_requests_run() -> None:
    stall = Stall(unready_s=10, lost_s=60)
    working = both(steps=5, running=2)
    assert not stall.observe(100, working)
    assert not stall.observe(105, working)
    assert stall.reason == ""
    assert not stall.observe(111, working)
    assert stall.reason == "no step for 11 s while 2 requests run"
    assert stall.observe(160, working)
    assert stall.lasts(160) == 60


def test_a_step_or_an_idle_group_starts_anew() -> None:
    stall = Stall(unready_s=10, lost_s=60)
    stall.observe(0, both(steps=5, running=2))
    stall.observe(50, both(steps=5, running=2))
    assert stall.reason
    assert not stall.observe(59, both(steps=6, running=2))
    assert stall.reason == ""
    assert not stall.observe(500, both(steps=6, running=0))
    assert not stall.observe(505, both(steps=6, running=1))
    assert stall.reason == ""


def test_a_kernel_that_any_rank_compiles_is_no_stall() -> None:
    """Ranks of one node compile a kernel once: those that wait for it have no compiler of their own."""
    stall = Stall(unready_s=10, lost_s=60)
    for seconds in range(0, 120, 5):
        idle, busy = {"steps": 5, "running": 1}, {"steps": 5, "running": 1, "compiling": 100 * seconds}
        assert not stall.observe(seconds, [idle, busy])
        assert stall.reason == ""
    hung = [{"steps": 5, "running": 1}, {"steps": 5, "running": 1, "compiling": 11_500}]
    assert not stall.observe(130, hung)
    assert stall.reason == "no step for 15 s while 1 requests run"
    assert stall.observe(180, hung)
