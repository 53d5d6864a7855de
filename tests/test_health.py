"""A group whose requests make no progress is unready first, and given up later."""

from __future__ import annotations

from raylaunch.health import Stall


def test_no_step_while_requests_run() -> None:
    stall = Stall(unready_s=10, lost_s=60)
    working = {"steps": 5, "running": 2}
    assert not stall.look(100, working)
    assert not stall.look(105, working)
    assert stall.reason == ""
    assert not stall.look(111, working)
    assert stall.reason == "no step for 11 s while 2 requests run"
    assert stall.look(160, working)
    assert stall.lasts(160) == 60


def test_a_step_or_an_idle_group_starts_anew() -> None:
    stall = Stall(unready_s=10, lost_s=60)
    stall.look(0, {"steps": 5, "running": 2})
    stall.look(50, {"steps": 5, "running": 2})
    assert stall.reason
    assert not stall.look(59, {"steps": 6, "running": 2})
    assert stall.reason == ""
    assert not stall.look(500, {"steps": 6, "running": 0})
    assert not stall.look(505, {"steps": 6, "running": 1})
    assert stall.reason == ""
