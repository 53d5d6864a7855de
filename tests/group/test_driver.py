"""The driver over ranks whose arrivals are written in the test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raylaunch import LaunchConfig, LaunchError
from raylaunch.group import driver
from raylaunch.group.driver import Driver
from raylaunch.group.outcome import StepOutcome
from raylaunch.model.shape import ModelShape
from raylaunch.protocol import Gate, Step
from raylaunch.report import LaunchReport
from raylaunch.resolved import launch_of
from tests.protocol.builders import PLAN, arrivals
from tests.scripted_group import ScriptedGroup

RESOLVED = replace(launch_of(LaunchConfig.default(), ModelShape("tiny", 2048, 16, 4, 4)), plan=PLAN)


def driver_of(group: ScriptedGroup, **more: Any) -> Driver:
    return Driver(group, RESOLVED, LaunchReport("x"), lambda *_: None, **more)  # type: ignore[arg-type]


def test_all_steps_are_taken_and_the_last_arrivals_returned() -> None:
    one = driver_of(ScriptedGroup(PLAN))
    assert [arrival.offer for arrival in one.run()] == ["offer 0", "offer 1"]
    assert [record.step for record in one.report.steps] == list(PLAN.steps())


@pytest.mark.parametrize("rounds_from_ranks", [False, True], ids=["reference", "sglang"])
def test_what_the_ranks_have_settled_is_decided_then(rounds_from_ranks: bool) -> None:
    plan = replace(PLAN, rounds=() if rounds_from_ranks else PLAN.rounds, rounds_from_ranks=rounds_from_ranks)
    before = replace(RESOLVED, plan=plan)
    group: Any = ScriptedGroup(PLAN)
    one = Driver(group, before, LaunchReport("x"), lambda *_: None)
    assert (one.resolved.kv_tokens, one.resolved.max_context) == (0, 2048)
    one.run()
    assert one.resolved == replace(before, plan=PLAN, kv_tokens=8192)
    assert (before.plan, before.kv_tokens) == (plan, 0)


@pytest.mark.parametrize("looks", [0, 3, 10])  # before the first step, between two, while ranks are waited for
def test_a_launch_that_is_wanted_no_more_ends_without_waiting_for_its_ranks(
    monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    asked = iter(range(100))
    monkeypatch.setattr(driver, "explain_failure", None)  # nothing has failed
    with pytest.raises(LaunchError, match="the engine was shut down"):
        driver_of(ScriptedGroup(PLAN, hangs_at=4), stopped=lambda: next(asked) >= looks).run()


def test_a_rank_that_is_gone_at_its_release_from_the_last_gate_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ScriptedGroup(PLAN)
    group.finished = StepOutcome(deaths={1: "killed"})

    def explain(group: object, outcome: StepOutcome, step: Step, *_: object) -> LaunchError:
        return LaunchError(f"{sorted(outcome.deaths)} died at {step.gate}")

    monkeypatch.setattr(driver, "explain_failure", explain)
    with pytest.raises(LaunchError, match=rf"\[1\] died at {Gate.READY}"):
        driver_of(group).run()


class LastFirst(ScriptedGroup):
    """Rank 0 comes last to every gate."""

    def advance(self, *arguments: Any) -> StepOutcome:
        outcome = super().advance(*arguments)
        return replace(outcome, arrivals=dict(reversed(outcome.arrivals.items())))


def test_what_rank_0_hands_out_at_attach_is_told_before_any_rank_goes_on() -> None:
    group, taken = LastFirst(PLAN), []
    driver_of(group, at={Gate.ATTACH: lambda offer: taken.append((offer, group._taken))}).run()
    (step,) = (step for step in PLAN.steps() if step.gate is Gate.ATTACH)
    assert taken == [(arrivals(PLAN, step)[0].offer, list(PLAN.steps()).index(step) + 1)]


def test_a_frontend_that_cannot_be_made_ends_the_launch_there() -> None:
    group = ScriptedGroup(PLAN)

    def fails(offer: object) -> None:
        raise LaunchError("no tokenizer")

    with pytest.raises(LaunchError, match="no tokenizer"):
        driver_of(group, at={Gate.ATTACH: fails}).run()
    assert group._taken == [step.gate for step in PLAN.steps()].index(Gate.ATTACH) + 1
