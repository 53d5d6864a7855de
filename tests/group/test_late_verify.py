"""Shapes that a launch has left are verified one after another, as long as no request runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from raylaunch.group import late_verify
from raylaunch.group.late_verify import LONG_S, QUIET_S, SHARE, Delay, LateVerification
from raylaunch.group.outcome import StepOutcome
from raylaunch.protocol import Arrival, Release, Step, VerifyFacts
from raylaunch.report import LaunchReport, StepRecord
from tests.protocol.builders import PLAN, VERDICT, arrivals, say
from tests.waiting import wait_until

NOT_NOW = {"shapes": {}}
WRONG = {"max_error": 1.0}


class Ranks:
    """A group and its frontend: ranks come to the gate of the shape that they were told to verify.

    Attributes:
        told: shapes, each time.
        says: how ranks come to a shape: what they say of it in turn, then that it is right.
        running: requests.
    """

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.finished: list[Step] = []
        self.says: dict[int, list[Callable[[list[Arrival]], Any]]] = {}
        self.running = 0
        self.up = True

    def busy(self) -> bool:
        return self.running > 0

    def verify(self, name: Any, shape: int) -> bool:
        assert not self.running
        self.told.append((name, shape))
        return self.up

    def advance(self, leave: Release | None, wait: Callable[[tuple[int, ...]], float]) -> StepOutcome:
        step = Step(late_verify.Gate.LATER, *self.told[-1])  # type: ignore[arg-type]
        ranks, says = arrivals(PLAN, step), self.says.get(self.told[-1][1], [])
        said = says.pop(0)(ranks) if says else ranks
        while said is None and wait((0, 1)) > 0:
            time.sleep(0.001)
        return StepOutcome({one.rank: one for one in said}) if said else StepOutcome(pending=(0, 1))

    def finish(self, leave: Release, timeout_s: float) -> StepOutcome:
        self.finished.append(leave.step)
        return StepOutcome()


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    monkeypatch.setattr(late_verify, "QUIET_S", 0.02)
    monkeypatch.setattr(late_verify, "LOOK_S", 0.002)
    return Ranks()


def begun(ranks: Ranks) -> tuple[LateVerification, LaunchReport]:
    report = LaunchReport("tiny")
    report.steps = [StepRecord(step, tuple(arrivals(PLAN, step)), 0.0) for step in PLAN.steps()]
    report.steps = [one for one in report.steps if not isinstance(one.arrivals[0].facts, VerifyFacts)]
    report.shapes = tuple(f"{name} {shape}" for name, shape in PLAN.shapes)
    late = LateVerification(ranks, PLAN, report, ranks)  # type: ignore[arg-type]
    late.start()
    return late, report


def both(**changes: Any) -> Callable[[list[Arrival]], list[Arrival]]:
    return lambda ranks: say(0, **changes)(say(1, **changes)(ranks))


def test_every_shape_once_and_what_is_declined_again(ranks: Ranks) -> None:
    ranks.says[8] = [both(**NOT_NOW), both(**NOT_NOW)]
    late, report = begun(ranks)
    wait_until(lambda: not report.unverified, 5)
    assert ranks.told == [("prefill", 32), *[("prefill", 8)] * 3, ("decode", 4), ("decode", 2)]
    assert [(one.round, one.shape) for one in ranks.finished] == ranks.told, "ranks never stay at their gate"
    assert len(report.verdicts) == 4
    assert late.violation is None
    late.stop()


def test_nothing_begins_while_requests_run_nor_without_ranks(ranks: Ranks) -> None:
    ranks.running, ranks.up = 1, False
    late, report = begun(ranks)
    time.sleep(0.1)
    assert ranks.told == []
    ranks.running = 0
    wait_until(lambda: len(ranks.told) > 1, 5)
    assert set(ranks.told) == {("prefill", 32)}
    assert len(report.unverified) == 4
    late.stop()
    assert not any(one.name == "raylaunch-verify" for one in threading.enumerate())


def test_what_requests_have_waited_is_a_small_share_of_what_they_ran() -> None:
    delay = Delay()
    assert not delay.allows(QUIET_S / 2)
    assert delay.allows(QUIET_S), "nobody has waited yet"
    delay.add(0.09)
    assert not delay.allows(QUIET_S)
    assert delay.allows(LONG_S), "a server that nobody asks any more comes to the end of its shapes"
    delay.ran_s = 8.9  # another one of 0.09 s would be more than the share
    assert not delay.allows(QUIET_S)
    delay.ran_s = 9.0
    assert delay.allows(QUIET_S)
    for _ in range(1000):  # requests of 0.1 s, each of which meets a shape where one may begin
        delay.ran_s += 0.1
        if delay.allows(QUIET_S):
            delay.add(0.05)
    assert delay.waited_s <= SHARE * delay.ran_s


def test_who_has_waited_for_a_shape_runs_for_long_before_the_next(ranks: Ranks) -> None:
    def meets_a_request(said: list[Arrival]) -> list[Arrival]:
        ranks.running = 1
        time.sleep(0.03)
        return said

    ranks.says[32] = [meets_a_request]
    late, report = begun(ranks)
    wait_until(lambda: bool(ranks.finished), 5)
    for _ in range(10):
        ranks.running = 0
        time.sleep(0.04)
        ranks.running = 1
        time.sleep(0.005)
    assert ranks.told == [("prefill", 32)]
    late._delay.ran_s = 100.0
    ranks.running = 0
    wait_until(lambda: not report.unverified, 5)
    late.stop()


def test_f12_the_first_wrong_shape_is_the_last(ranks: Ranks) -> None:
    ranks.says[8] = [say(1, shapes={"prefill 8": replace(VERDICT, **WRONG)})]
    late, report = begun(ranks)
    wait_until(lambda: late.violation is not None, 5)
    found = late.violation
    assert found is not None
    assert (found.code, found.rank, found.step.shape) == ("F12", 1, 8)
    assert [one.shape for one in ranks.finished] == [32], "the others stay at their gate: they answer nothing more"
    assert report.unverified == ("prefill 8", "decode 4", "decode 2")
    late.stop()


def test_it_ends_while_ranks_are_waited_for(ranks: Ranks) -> None:
    ranks.says[32] = [lambda _: None]
    late, _ = begun(ranks)
    wait_until(lambda: bool(ranks.told), 5)
    late.stop()
    assert ranks.finished == []


def test_where_nothing_is_left_there_is_nothing_to_stop() -> None:
    late = LateVerification(Ranks(), PLAN, LaunchReport("tiny"), Ranks())  # type: ignore[arg-type]
    late.start()
    late.stop()
