"""What the machines of a cluster have: a task on one node of each kind says so, as the driver's may be unlike them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raylaunch.cluster.placement import Node

ANSWER_S = 60.0  # a worker is started, and imports what it is asked to run
MACHINE = ("node:", "memory", "object_store_memory")  # names and sizes that tell nodes of one kind apart


def kinds(nodes: Sequence[Node], here: str) -> list[list[Node]]:
    """The nodes by what they offer to ranks, but for those like the one whose id is ``here``."""
    by_kind: dict[frozenset[tuple[str, float]], list[Node]] = {}
    for node in nodes:
        offers = {name: amount for name, amount in node.total.items() if not name.startswith(MACHINE)}
        by_kind.setdefault(frozenset(offers.items()), []).append(node)
    return [alike for alike in by_kind.values() if all(node.node_id != here for node in alike)]


def ask_each_kind(nodes: Sequence[Node], question: Callable[[], Any]) -> Mapping[str, Any]:
    """What ``question`` returns on the first node of each kind that is not the driver's, or why nobody knows, in words;
    by the node's address. Needs a Ray session."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for alike in kinds(nodes, ray.get_runtime_context().get_node_id()):
        where = NodeAffinitySchedulingStrategy(alike[0].node_id, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(question)
        asked[alike[0].address] = task.remote()
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S) if asked else ()
    answers: dict[str, Any] = {}
    for address, answer in asked.items():
        try:
            answers[address] = ray.get(answer, timeout=0)
        except Exception as error:  # Ray's own, of many classes, and whatever a node's installation fails with
            answers[address] = f"does not say what it has: {str(error).strip().splitlines()[-1]}"
    return answers
