"""The driver over ranks whose arrivals are written in the test."""

from __future__ import annotations

from typing import Any

import pytest

from raylaunch import LaunchConfig, LaunchError, driver
from raylaunch.driver import Driver
from raylaunch.group import StepOutcome
from raylaunch.protocol import Gate, Protocol, Step
from raylaunch.report import LaunchReport
from tests.protocol.builders import PLAN
from tests.scripted_group import ScriptedGroup

CONFIG = LaunchConfig.default()


def driver_of(group: ScriptedGroup, **more: Any) -> Driver:
    return Driver(group, Protocol(PLAN), CONFIG, LaunchReport("x"), lambda *_: None, **more)  # type: ignore[arg-type]


def test_all_steps_are_taken_and_the_last_arrivals_returned() -> None:
    one = driver_of(ScriptedGroup(PLAN))
    assert [arrival.offer for arrival in one.run()] == ["offer 0", "offer 1"]
    assert [record.step for record in one.report.steps] == list(PLAN.steps())


def test_a_rank_that_is_gone_at_its_release_from_the_last_gate_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ScriptedGroup(PLAN)
    group.finished = StepOutcome(deaths={1: "killed"})

    def explain(group: object, outcome: StepOutcome, step: Step, *_: object) -> LaunchError:
        return LaunchError(f"{sorted(outcome.deaths)} died at {step.gate}")

    monkeypatch.setattr(driver, "explain_failure", explain)
    with pytest.raises(LaunchError, match=rf"\[1\] died at {Gate.READY}"):
        driver_of(group).run()
