"""Notices a node that does not answer any more: a pulled cable neither ends a connection nor refuses one.

Ray's own health check (https://github.com/ray-project/ray/pull/29442) is the cluster's to set: with its defaults
Ray 2.60 had said nothing of a pulled cable after a minute.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

ASK_EVERY_S = 1.0


@dataclass
class NodeWatch:
    """Asks the agent of every node, again and again, whether it is there. Never waits for the answers.

    Attributes:
        agents: of the nodes, by node id; read anew at every look.
        patience_s: seconds that a question may stay unanswered.
    """

    agents: Mapping[str, Any]
    patience_s: float
    _asked: dict[str, tuple[Any, float]] = field(default_factory=dict)
    _next: float = 0.0

    def lost(self) -> set[str]:
        """Ids of the nodes that have left a question unanswered for too long."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + ASK_EVERY_S
            open_ = [ref for ref, _ in self._asked.values()]
            _, waiting = ray.wait(open_, num_returns=len(open_), timeout=0) if open_ else ([], [])
            for node, agent in self.agents.items():
                # An error is an answer: that of a dead agent, whose ranks' own calls end as well.
                if node not in self._asked or self._asked[node][0] not in waiting:
                    self._asked[node] = (agent.ready.remote(), now)
        return {node for node, (_, since) in self._asked.items() if now - since > self.patience_s}
