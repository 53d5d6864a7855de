"""Groups whose ranks are stepped by the agents of their nodes: what fails on any node is named as when each is called.

Two Ray nodes of this machine, each with two ranks that do nothing.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from raylaunch import LaunchConfig, LaunchError
from raylaunch.benchmarks.launch import noop_config
from raylaunch.group import stepping
from raylaunch.group.launch import Launched, launch
from raylaunch.group.ranks import RankGroup
from raylaunch.model.shape import ModelShape
from raylaunch.report import LaunchReport
from raylaunch.resolved import launch_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

RANKS, NODES = 4, 2
AT = "capture prefill 50 1"
MEMORY = 80_000_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and two nodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY})
    for _ in range(NODES):
        cluster.add_node(num_cpus=2, object_store_memory=MEMORY)
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(autouse=True)
def groups(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> list[RankGroup]:
    """The groups that a test starts, whose every rank is stepped by an agent."""
    monkeypatch.setattr(stepping, "CALLED_RANKS", 1)
    groups: list[RankGroup] = []
    start = RankGroup.start

    def started(self: RankGroup, *arguments: Any) -> Any:
        outcome = start(self, *arguments)
        assert sorted(map(len, self.stepper.nodes.values())) == [2, 2]
        groups.append(self)
        return outcome

    monkeypatch.setattr(RankGroup, "start", started)
    return groups


def config(*settings: str) -> LaunchConfig:
    base = LaunchConfig.default([f"parallel.nodes={NODES}", f"parallel.tensor_parallel_size={RANKS}"])
    return noop_config(base, RANKS).override("deadlines.capture=3", *settings)


def launched(wanted: LaunchConfig, listener: Callable[..., None] = lambda *_: None) -> Launched:
    done = launch(launch_of(wanted, ModelShape("none", 0, 0, 0, 0), "noop"), LaunchReport("x"), listener)
    done.group.close(5.0)
    return done


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize(
    ("action", "code", "text", "within_s"),
    [
        ("kill", "F06", "died: killed by SIGKILL", 3),
        ("raise", "F05", "ValueError: raised on purpose", 3),
        ("sleep", "F08", "still busy", 9),
        ("stop", "F08", "its process is stopped (SIGSTOP)", 12),
    ],
)
def test_a_rank_that_fails_is_named(action: str, code: str, text: str, within_s: float, rank: int) -> None:
    began: list[float] = []
    with pytest.raises(LaunchError) as caught:
        launched(
            config(f"faults=[{{action: {action}, rank: {rank}, at: {AT}}}]"), lambda *_: began.append(time.monotonic())
        )
    error = caught.value
    assert (error.code, error.phase, error.rank) == (code, "CAPTURE", rank), error
    assert text in str(error)
    assert time.monotonic() - began[-1] < within_s
    assert [one.rank for one in error.ranks] == list(range(RANKS))
    others = {one.state for one in error.ranks if one.rank != rank}
    assert all(state.startswith("arrived at CAPTURE iteration") for state in others), others
    assert f"{RANKS} actors, 1 placement group released" in error.teardown


def agents() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [one for one in found if one.name().startswith("ray::NodeAgent")]


def test_an_agent_that_dies_ends_no_launch(groups: list[RankGroup]) -> None:
    """Its ranks are called from then on, also if it had released them."""
    killed: list[int] = []

    def kill_one(step: Any, index: int, steps: int) -> None:
        if index == steps // 2:
            killed.append(agents()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    assert len(launched(config(), kill_one).report.steps) > 200
    assert killed
    assert len(groups[0].stepper.nodes) == NODES - 1


def test_an_agent_that_is_stopped_is_not_taken_for_its_ranks() -> None:
    """They stand at the gate, and the error says that nobody tells so."""

    def stop_one(step: Any, index: int, steps: int) -> None:
        if index == steps // 2:
            agents()[0].suspend()

    with pytest.raises(LaunchError) as caught:
        launched(config(), stop_one)
    assert (caught.value.code, caught.value.phase) == ("F08", "CAPTURE")
    assert "not told by the agent of its node" in caught.value.headline()


def test_a_node_that_is_lost_is_named(cluster: Any) -> None:
    def lose(step: Any, index: int, steps: int) -> None:
        if index == steps // 2:
            cluster.remove_node(sorted(cluster.worker_nodes, key=str)[0], allow_graceful=False)

    with pytest.raises(LaunchError) as caught:
        launched(config(), lose)
    assert caught.value.phase == "CAPTURE"
    assert re.search(r"died: its node (died|does not answer)", caught.value.headline())
