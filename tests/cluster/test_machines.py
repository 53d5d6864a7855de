"""Which nodes are asked what their machines have, and what is said of those that do not say."""

from __future__ import annotations

import os

import pytest
import ray

from raylaunch.cluster.machines import ask_each_kind, kinds
from raylaunch.cluster.placement import Node, cluster_nodes


def node(name: str, **total: float) -> Node:
    sizes = {f"node:{name}": 1.0, "memory": float(len(name)), "object_store_memory": float(hash(name) % 7)}
    return Node(name, f"10.0.0.{name}", {**total, **sizes}, {})


HEAD = node("head")
BIG, OTHER_BIG, SMALL = node("a", CPU=8, GPU=8), node("bb", CPU=8, GPU=8), node("c", CPU=8, GPU=1)


@pytest.mark.parametrize(
    ("nodes", "here", "asked"),
    [
        ([HEAD], "head", []),
        ([HEAD, BIG, OTHER_BIG, SMALL], "head", [["a", "bb"], ["c"]]),
        ([BIG, OTHER_BIG], "a", []),
        ([HEAD, BIG], "a", [["head"]]),
    ],
)
def test_one_of_each_kind_but_the_drivers(nodes: list[Node], here: str, asked: list[list[str]]) -> None:
    assert [[one.node_id for one in alike] for alike in kinds(nodes, here)] == asked


@pytest.mark.slow
def test_a_node_says_what_it_has_or_why_not() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
    cluster.add_node(num_cpus=3, object_store_memory=80_000_000)
    ray.init(cluster.address, log_to_driver=False)
    try:
        (answer,) = ask_each_kind(cluster_nodes(), lambda: os.getpid()).values()
        assert answer not in (0, os.getpid())
        (reason,) = ask_each_kind(cluster_nodes(), lambda: 1 / 0).values()
        assert reason == "does not say what it has: ZeroDivisionError: division by zero"
    finally:
        ray.shutdown()
        cluster.shutdown()
