"""Settings of all tests."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.parallel import ONE_AT_A_TIME, scheduler

# No time limit for one example: on a shared machine it measures the neighbours. The same examples each time, so that a
# change is judged by itself; `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("raylaunch", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=5000)
settings.load_profile("raylaunch")

# Images of containers like to set it. The tests start some hundred interpreters, and each would compile all of ours.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_finish() -> None:
    """Leaves what collection has made out of all later garbage collections: captures begin with a full one each."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What ``-n 2`` keeps in one process comes first there: it takes longer than all else."""
    items.sort(key=lambda item: not item.nodeid.startswith(ONE_AT_A_TIME))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return scheduler(config, log)


@pytest.fixture(autouse=True)
def _no_nicer() -> Iterator[None]:
    """No test leaves this process, and what later ones launch, at another priority than it found."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    yield
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
