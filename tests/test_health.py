"""A group whose requests make no progress is unready first, and given up later."""

from __future__ import annotations

import pytest

from raylaunch.errors import LaunchError
from raylaunch.health import Condition, Health, RankHealth, Stall, readiness

LOST, USELESS = LaunchError("rank 1 died", "F07", "SERVE"), LaunchError("the detokenizer was killed")


@pytest.mark.parametrize(
    ("condition", "error", "failure", "problems", "judged"),
    [
        (Condition.NEW, None, None, ("", ""), (Condition.NEW, "new")),
        (Condition.LAUNCHING, None, None, (), (Condition.LAUNCHING, "launching")),
        (Condition.LAUNCHING, LOST, None, (), (Condition.LAUNCHING, LOST.headline())),
        (Condition.READY, None, None, ("", ""), (Condition.READY, "")),
        (Condition.READY, None, None, ("", "no step for 11 s", "more"), (Condition.READY, "no step for 11 s")),
        (Condition.READY, None, USELESS, ("more",), (Condition.FAILED, USELESS.headline())),
        (Condition.REBUILDING, LOST, None, (), (Condition.REBUILDING, LOST.headline())),
        (Condition.REBUILDING, LOST, USELESS, ("more",), (Condition.REBUILDING, LOST.headline())),
        (Condition.FAILED, LOST, None, (), (Condition.FAILED, LOST.headline())),
        (Condition.STOPPED, None, None, (), (Condition.STOPPED, "stopped")),
    ],
)
def test_why_requests_are_not_answered(condition, error, failure, problems, judged):
    assert readiness(condition, error, failure, problems) == judged


def test_a_rank_that_does_not_answer_makes_the_group_unready():
    silent = (RankHealth(0, True, "", {}), RankHealth(1, False, "does not answer", {}))
    ready = Health(True, Condition.READY, "", (), 1, 0)
    assert (ready.with_ranks(silent).ready, ready.with_ranks(silent).reason) == (False, "rank 1 does not answer")
    assert ready.with_ranks(silent[:1]).ready
    lost = Health(False, Condition.REBUILDING, "rank 1 died", (), 1, 0)
    assert lost.with_ranks(silent).reason == "rank 1 died"


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
