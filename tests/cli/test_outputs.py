"""Results that cannot be written, which shows only when they are: nothing else that the command has found is lost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

import raylaunch.engine
from raylaunch.benchmarks.results import write_results
from raylaunch.errors import LaunchError
from raylaunch.report import LaunchReport
from raylaunch.terminal.outcome import reported
from tests.cli.runner import Ran, run

FULL = "/dev/full"  # may be written to until something is


class Launched:
    """An engine that is there at once, or fails with ``error``, and answers everything with 42."""

    error: LaunchError | None = None
    ended = 0
    frontend = SimpleNamespace(room=None)

    def __init__(self, config: Any, listener: Any) -> None:
        self.config, self.report = config.config, LaunchReport(config.config.name)

    def start(self) -> None:
        if self.error is not None:
            raise self.error

    def shutdown(self) -> None:
        type(self).ended += 1

    def generate(self, prompt: str, params: Any) -> Any:
        return SimpleNamespace(text="42", token_ids=(1, 2), finish_reason="stop")

    async def agenerate(self, prompt: str, params: Any) -> Any:
        return self.generate(prompt, params)


@pytest.fixture(autouse=True)
def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Launched, "ended", 0)
    monkeypatch.setattr(raylaunch.engine, "Engine", Launched)


def generate_with_a_trace() -> Ran:
    return run("generate", "--prompt", "12+30=", "--trace", FULL)


def test_a_launch_goes_on_without_its_trace() -> None:
    ran = generate_with_a_trace()
    assert (ran.code, ran.stdout, Launched.ended) == (1, "42\n", 1)
    assert "--trace = '/dev/full': cannot be written: No space left on device\n" in ran.stderr
    assert "tiny: " in ran.stderr


def test_a_failed_launch_is_reported_without_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Launched, "error", LaunchError("rank 1 has died", "F06", "LOAD"))
    ran = generate_with_a_trace()
    assert (ran.code, ran.stdout) == (1, "")
    assert "--trace = '/dev/full': cannot be written" in ran.stderr
    assert ran.stderr.endswith("LaunchError F06 [LOAD] rank 1 has died\n")


def test_figures_come_before_the_answers_that_cannot_be_written() -> None:
    ran = run("eval", "--data", "sums-heldout", "--limit", "3", "--output", FULL)
    assert ran.code == 1
    assert ran.stdout.startswith("Accuracy: ")
    assert ran.stderr.endswith("--output = '/dev/full': cannot be written: No space left on device\n")


def test_figures_of_a_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, reported():
        write_results(Path(FULL), {}, {})
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "--json = '/dev/full': cannot be written: No space left on device\n"
