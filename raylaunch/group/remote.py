"""The actors as Ray's workers import them: through ``raylaunch``, which knows where the rank's side lies.

A worker that runs from a job's working directory has no installed ``raylaunch_actors``. Ray makes it import an actor's
class before anything else of ours, so the classes that Ray is given live here.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from raylaunch_actors import endings, node_agent, rank, weight_keeper
from raylaunch_actors.spec import RankSpec

from raylaunch import ray_private
from raylaunch.resolved import gpus_per_rank

NO_VISIBLE = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
"""Ray (2.60) would show each rank its own GPU only; ranks that share memory must see all of the group's."""


class Rank(rank.RankBase):
    """A rank; one thread runs ``boot`` for life, the others answer meanwhile."""

    def __init__(self, spec: RankSpec, stands_by: bool = False) -> None:
        endings.restore_signals()  # Ray makes actors on the main thread
        super().__init__(spec, stands_by)

    @ray.method(concurrency_group="control")
    def adopt(self, spec: RankSpec) -> None:
        super().adopt(spec)
        ray_private.name_in_logs(repr(self))


class NodeAgent(node_agent.NodeAgentBase):
    """The agent of one node."""


class WeightKeeper(weight_keeper.WeightKeeperBase):
    """Keeps the weights of one node in memory."""


class Holder:
    """Keeps the GPUs of a rank whose process was started without: Ray gives none to an actor that there is already."""

    def gpus(self) -> tuple[str, ...]:
        """Ray's ids of them."""
        return tuple(ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))

    def hold(self) -> None:
        """Lasts as long as they are kept."""
        threading.Event().wait()


NEVER_AGAIN = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}
for name in ("whoami", "health", "metrics", "stop", "stacks", "finish"):
    setattr(Rank, name, ray.method(concurrency_group="control")(getattr(rank.RankBase, name)))
for name in ("advance", "attach"):
    setattr(Rank, name, ray.method(concurrency_group="gate")(getattr(rank.RankBase, name)))
RankActor = ray.remote(**NEVER_AGAIN, concurrency_groups={"control": 2, "gate": 1})(Rank)
# One call waits for news as long as the group lives, another steps ranks.
NodeAgentActor = ray.remote(**NEVER_AGAIN, max_concurrency=6)(NodeAgent)
WeightKeeperActor = ray.remote(**NEVER_AGAIN, max_concurrency=2)(WeightKeeper)
HolderActor = ray.remote(**NEVER_AGAIN, max_concurrency=2)(Holder)


def rank_actor(
    spec: RankSpec,
    name: str,
    where: Any,
    *,
    has_gpus: bool = True,
    stands_by: bool = False,
    executable: str | None = None,
) -> Any:
    """An actor that is a rank, or stands by to become one.

    Args:
        name: in its group.
        where: a scheduling strategy of Ray's.
        has_gpus: Ray gives it those that ``spec`` asks for.
        executable: what its process is started with; None for what Ray starts Python with.
    """
    options: dict[str, Any] = {
        "name": f"{spec.group}/{name}",
        "namespace": spec.config.placement.namespace,
        "scheduling_strategy": where,
    }
    if spec.device == "cuda":
        options["num_gpus"] = 0 if stands_by or not has_gpus else gpus_per_rank(spec.config, spec.device)
        options["runtime_env"] = NO_VISIBLE
    if executable is not None:
        options["runtime_env"] = {**options.get("runtime_env", {}), "py_executable": executable}
    return RankActor.options(**options).remote(spec, stands_by)


def agent_on(node_id: str) -> Any:
    """The agent of a node."""
    return NodeAgentActor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()


def weight_keeper_on(node_id: str, environment: Mapping[str, str]) -> Any:
    """What keeps weights on a node. ``environment`` is that of the ranks."""
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return WeightKeeperActor.options(scheduling_strategy=there).remote(environment)


def holder_in(bundle: Any, spec: RankSpec) -> Any:
    """An actor in a bundle that keeps the GPUs of the rank of ``spec``."""
    gpus = gpus_per_rank(spec.config, spec.device)
    return HolderActor.options(num_gpus=gpus, scheduling_strategy=bundle).remote()
