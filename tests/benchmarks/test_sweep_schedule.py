"""What of a sweep is due, and what may start now."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylaunch.benchmarks.sweep.run import in_cluster
from raylaunch.benchmarks.sweep.schedule import due, next_start
from raylaunch.cluster.placement import Node
from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError, LaunchError
from raylaunch.model_check import resolve
from raylaunch.resolved import BundleRequest
from tests.benchmarks.sweeps import line_of, sweep_of


def pack(ranks: int, resource: str = "CPU") -> tuple[BundleRequest, ...]:
    return (BundleRequest(({resource: 1.0},) * ranks, "STRICT_PACK"),)


def spread(nodes: int, each: float) -> tuple[BundleRequest, ...]:
    return (BundleRequest(({"CPU": each},) * nodes, "STRICT_SPREAD"),)


def cpus(*free: float) -> list[dict[str, float]]:
    return [{"CPU": one} for one in free]


@pytest.mark.parametrize(
    ("waiting", "starting", "running", "most", "free", "index"),
    [
        ([], [], 0, None, cpus(8), None),
        ([pack(9)], [], 0, None, cpus(8), 0),  # its own launch says that there is no room
        ([pack(1)], [], 1, 1, cpus(8), None),
        ([pack(1)], [], 1, 2, cpus(8), 0),
        ([pack(2)], [], 1, None, cpus(1, 1), None),
        ([pack(2)], [], 1, None, cpus(1, 2), 0),
        ([pack(4), pack(2), pack(1)], [], 1, None, cpus(2), 1),
        ([pack(2)], [pack(2)], 1, None, cpus(3), None),  # that one has not got its place yet
        ([pack(2)], [pack(2)], 1, None, cpus(4), 0),
        ([pack(2)], [pack(2)], 1, None, cpus(2, 2), 0),
        ([pack(1)], [pack(4)], 1, None, cpus(2), None),  # it waits for room, which is not to be taken from it
        ([spread(2, 1)], [], 1, None, cpus(8), None),
        ([spread(2, 1)], [], 1, None, cpus(1, 1), 0),
        ([pack(1, "GPU")], [], 1, None, cpus(8), None),
        ([pack(1) * 2], [], 1, None, cpus(1), None),  # two replicas
        ([pack(1) * 2], [], 1, None, cpus(1, 1), 0),
    ],
)
def test_what_may_start(waiting, starting, running, most, free, index) -> None:
    assert next_start(waiting, starting, running, most, free) == index
    assert free == [dict(node) for node in free]


GRID = "measure: launch\ngrid: {tp: [1, 2]}"


def test_starts_come_in_rounds_and_what_is_there_is_not_due(tmp_path: Path) -> None:
    _, (one, two) = sweep_of(tmp_path, GRID)

    def left(*lines: dict[str, object], retry_failed: bool = False) -> list[tuple[int, int]]:
        made = due([one, two], 2, lines, retry_failed=retry_failed)
        return [([one, two].index(cell), start) for cell, start in made]

    assert left() == [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert left(line_of(one)) == [(1, 1), (0, 2), (1, 2)]
    assert left(line_of(one, error="no")) == [(1, 1), (1, 2)]
    assert left(line_of(one), line_of(one, 2, error="no")) == [(1, 1), (1, 2)]
    assert left(line_of(one, error="no"), retry_failed=True) == left()
    assert left(line_of(one, error="no"), line_of(one), retry_failed=True) == [(1, 1), (0, 2), (1, 2)]
    assert left(line_of(one, error="no"), line_of(one)) == [(1, 1), (0, 2), (1, 2)]
    assert left(*(line_of(cell, start) for cell in (one, two) for start in (1, 2, 3))) == []
    assert left(line_of(one, 3, error="no")) == left()  # of a file that asked for more starts


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ((), ""),
        (("engine.device=auto",), ""),
        (("parallel.tensor_parallel_size=4",), "F13 .*can never be satisfied: no single node has 4 CPU"),
        (("engine.device=cuda",), "F13 .*can never be satisfied: no node has 1 CPU, 1 GPU"),
        (("engine.device=auto", "communicator.kind=sgl_kernel"), "needs GPUs; on CPUs there are"),
        (("parallel.nodes=2",), ""),
        (("parallel.nodes=4", "parallel.tensor_parallel_size=4"), "4 nodes are asked for and 2 can hold a bundle"),
    ],
)
def test_what_the_cluster_can_never_hold_is_told_before_it_is_launched(settings: tuple[str, ...], error: str) -> None:
    launch = resolve(LaunchConfig.default(settings))
    nodes = [Node(name, name, {"CPU": 2.0}, {"CPU": 2.0}) for name in "ab"]
    if error:
        with pytest.raises((ConfigError, LaunchError), match=error):
            in_cluster(launch, nodes, "head:6379")
    else:
        made = in_cluster(launch, nodes, "head:6379")
        assert (made.device, made.config.placement.address) == ("cpu", "head:6379")
