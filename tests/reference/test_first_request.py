"""The first request of a launch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from raylaunch_actors.reference.runner import ModelRunner
from raylaunch_actors.reference.scheduler import Scheduler
from raylaunch_actors.reference.verify import answer_one_request
from raylaunch_actors.reference.worker import RankZeroWorker

from tests.models import save
from tests.reference.engines import make_runner


@pytest.fixture(scope="module")
def runner(models: Path) -> ModelRunner:
    return make_runner(save("qwen3_tied", models), prefill=(4, 16), decode=(2,), capacity=64)


@pytest.mark.parametrize("setting", ["max_context", "capacity"])
@pytest.mark.parametrize(("room", "answered"), [(2, 1), (3, 2), (5, 4), (8, 4), (9, 4), (12, 4), (64, 4)])
def test_it_fits_a_small_context_and_a_small_cache(runner: ModelRunner, setting: str, room: int, answered: int) -> None:
    limits = replace(runner.limits, **{setting: room})
    worker = RankZeroWorker(runner, Scheduler(limits), None)
    assert len(answer_one_request(worker, limits)) == answered
    assert worker.scheduler._rows.taken == {}
