"""The actors as Ray's workers import them: through ``raylaunch``, which knows where the rank's side lies.

A worker that runs from a job's working directory has no installed ``raylaunch_actors``. Ray makes it import an actor's
class before anything else of ours, so the classes that Ray is given live here.
"""

from __future__ import annotations

import ray
from raylaunch_actors import endings, node_agent, rank
from raylaunch_actors.spec import RankSpec


class Rank(rank.RankBase):
    """A rank; one thread runs ``boot`` for life, the others answer meanwhile."""

    def __init__(self, spec: RankSpec) -> None:
        endings.restore_signals()  # Ray makes actors on the main thread
        super().__init__(spec)


class NodeAgent(node_agent.NodeAgentBase):
    """The agent of one node."""


NEVER_AGAIN = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}
for name in ("whoami", "health", "stop", "stacks", "finish"):
    setattr(Rank, name, ray.method(concurrency_group="control")(getattr(rank.RankBase, name)))
for name in ("advance", "attach"):
    setattr(Rank, name, ray.method(concurrency_group="gate")(getattr(rank.RankBase, name)))
RankActor = ray.remote(**NEVER_AGAIN, concurrency_groups={"control": 2, "gate": 1})(Rank)
# One call waits for news as long as the group lives, another steps ranks.
NodeAgentActor = ray.remote(**NEVER_AGAIN, max_concurrency=6)(NodeAgent)
