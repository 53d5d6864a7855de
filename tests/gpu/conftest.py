"""Tests that need CUDA devices: ``python -m pytest -m gpu``. Skipped, with the reason, where there are none."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Collection, Iterator

import psutil
import pytest

from raylaunch import LaunchConfig
from raylaunch.cluster.session import enter


def gpus() -> int:
    """CUDA devices of this machine; 0 with a CPU build of torch."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@pytest.fixture(scope="session", autouse=True)
def session() -> Iterator[None]:
    if gpus() == 0:
        pytest.skip("there is no CUDA device, or torch is a CPU build")
    ray_session = enter(None, 4, "raylaunch")
    yield
    ray_session.close()


@pytest.fixture
def two_ranks() -> LaunchConfig:
    """The embedded default on two ranks: on a GPU each, or sharing one where there is only one."""
    if importlib.util.find_spec("sgl_kernel") is None:
        pytest.skip("sgl_kernel (the package sglang-kernel) is not installed")
    share = 1.0 if gpus() > 1 else 0.5
    return LaunchConfig.default(["engine.device=cuda", f"placement.resources_per_rank={{GPU: {share}, CPU: 1}}"])


@pytest.fixture(autouse=True)
def memory_returns(session: None) -> Iterator[None]:
    """After every test no process that was started here holds memory of a GPU."""
    yield
    end = time.monotonic() + 5
    while memory_of(started_here()) and time.monotonic() < end:
        time.sleep(0.1)
    assert memory_of(started_here()) == 0


def started_here() -> list[int]:
    """The processes below this one: Ray's, and the ranks."""
    return [child.pid for child in psutil.Process().children(recursive=True)]


def memory_of(pids: Collection[int]) -> int:
    """Bytes of GPU memory that processes hold, as NVML says."""
    import pynvml

    pynvml.nvmlInit()
    held = 0
    for index in range(pynvml.nvmlDeviceGetCount()):
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
        held += sum(one.usedGpuMemory or 1 for one in running if one.pid in pids)
    return held
