"""A Ray session that the tests of this folder share, and a check that a launch leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table

from raylaunch import LaunchConfig
from raylaunch.cluster.session import enter


@pytest.fixture(scope="session")
def session() -> Iterator[None]:
    """One private cluster with four CPUs: starting it costs more than a launch in it."""
    ray_session = enter(None, 4, "raylaunch")
    yield
    ray_session.close()


@pytest.fixture
def clean(session: None) -> Iterator[None]:
    """Fails if the test leaves an actor, a placement group, a rank's process or shared memory behind."""
    before = held()
    yield
    end = time.monotonic() + 2.0
    while (left := held() - before - mapped_elsewhere()) and time.monotonic() < end:
        time.sleep(0.05)  # Ray's own tables follow by a few milliseconds
    assert left == set()


def held() -> set[str]:
    """What the launches that run now hold, in words."""
    actors = [entry for entry in ray._private.state.actors().values() if entry["State"] != "DEAD"]
    groups = [entry for entry in placement_group_table().values() if entry["state"] != "REMOVED"]
    found = {f"actor {entry['ActorID']} {entry['ActorClassName']}" for entry in actors}
    found |= {f"placement group {entry['name']}" for entry in groups}
    found |= {f"process {pid}" for pid in rank_processes()}
    # Ray maps its object store by files that it unlinks; anything that stays is a leak.
    return found | {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")}


def mapped_elsewhere() -> set[str]:
    """Shared memory of processes that are not this session's: another run may begin on this machine meanwhile."""
    ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if int(maps.parent.name) not in ours:
                found.update(re.findall(r"/dev/shm/\S+", maps.read_text()))
    return found


def rank_processes() -> list[int]:
    """Processes of this session that run a rank: Ray names an actor's process after its class."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline()).lower()
            if command.startswith("ray::") and "rank" in command and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.fixture
def tiny() -> LaunchConfig:
    """The embedded default with few shapes: a launch of a few seconds."""
    return LaunchConfig.default(["capture.prefill_tokens=[8,32]", "capture.decode_batch_sizes=[2]"])
