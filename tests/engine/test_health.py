"""Whether requests are answered, and if not why."""

from __future__ import annotations

import pytest

from raylaunch.engine.health import Condition, Health, RankHealth, readiness
from raylaunch.errors import LaunchError

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
