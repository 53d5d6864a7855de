"""The process of a start, as the sweep sees it; whole sweeps are in ``test_sweep``."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from raylaunch.benchmarks.sweep import run
from raylaunch.benchmarks.sweep.cell import Job
from raylaunch.benchmarks.sweep.plan import Cell, Measure
from raylaunch.benchmarks.sweep.run import RunningCell
from raylaunch.config import LaunchConfig
from raylaunch.model_check import resolve


@pytest.mark.parametrize(
    ("signals", "deadline_s", "parent", "error"),
    [
        ((), 60.0, 1, "its process ended with code 130 at starting"),  # the one that waits for it is gone
        ((signal.SIGKILL,), 60.0, None, "its process was killed by SIGKILL at starting"),
        ((signal.SIGSTOP,), 0.3, None, "was not done within 0.3 s; it was at starting"),
    ],
    ids=["its parent is gone", "killed", "stopped"],
)
def test_a_process_that_ends_without_a_result(
    signals: tuple[int, ...],
    deadline_s: float,
    parent: int | None,
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "GIVE_BACK_S", 0.5)  # the one that is stopped cannot be told anything
    job = Job(resolve(LaunchConfig.default()), Measure.model_validate("launch"), parent or os.getpid())
    one = RunningCell(Cell("id", {}, {}, {}, None), 1, job, tmp_path / "log", deadline_s)
    one.begin()
    process: Any = one._process
    for number in signals:
        process.send_signal(number)
    end = time.monotonic() + 60
    while not one.over():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert one.outcome() == {"error": error}
    assert process.returncode is not None
