"""One step of all ranks: the driver calls each or, in a large group, the agent of each node, which steps its own.

A call of Ray's costs the driver about a millisecond. An agent that is gone ends no launch: its ranks are called then.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError

from raylaunch.protocol import Arrival, Failure, Release

CALLED_RANKS = 16  # the largest group whose ranks are called one by one
GRACE_S = 0.3  # a death is seen within milliseconds of the errors it causes: this brings both
ATTACH_S, ANSWER_S = 30.0, 1.0
Report = Arrival | Failure | str
"""What a step brings of a rank; text is Ray's message that its actor is dead."""


@dataclass
class Stepper:
    """Takes the ranks of a group from gate to gate.

    Attributes:
        ranks: actors, by rank.
        agents: of the nodes, by node id.
        nodes: the ranks of each node whose agent steps them; all other ranks are called.
    """

    ranks: Mapping[int, Any]
    agents: Mapping[str, Any]
    nodes: dict[str, set[int]] = field(default_factory=dict)

    def attach(self, places: Mapping[int, str]) -> None:
        """Has agents step the ranks of a large group, by the node of each rank. Those of a node where that is not
        possible are called: what ails them will show there."""
        if len(self.ranks) <= CALLED_RANKS:
            return
        addresses = {node: agent.listen.remote() for node, agent in self.agents.items()}
        calls = {actor.attach.remote(addresses[places[rank]]): rank for rank, actor in self.ranks.items()}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=ATTACH_S)
        attached = set[int]()
        for ref in done:
            with contextlib.suppress(RayError):
                ray.get(ref)
                attached.add(calls[ref])
        there = {node: {rank for rank, its in places.items() if its == node} for node in self.agents}
        self.nodes = {node: ranks for node, ranks in there.items() if ranks <= attached}

    def step(self, leave: Release | None, wait: Callable[[tuple[int, ...]], float]) -> dict[int, Report]:
        """Releases every rank and collects what each reports next; stops early at the first failure.

        Args:
            leave: permission to leave the gate they stand at; None for the first step.
            wait: told which ranks are pending, returns seconds to go on waiting; 0 or less ends the step.
        Returns:
            The reports that came, by rank.
        """
        packed = cloudpickle.dumps(leave) if self.nodes else b""
        calls: dict[Any, int | str] = {self.agents[node].step.remote(packed): node for node in self.nodes}
        calls |= self._called(set(self.ranks).difference(*self.nodes.values()), leave)
        pending, reports = list(calls), dict[int, Report]()
        while pending and (left := wait(self._missing(reports))) > 0:
            done, pending = ray.wait(pending, num_returns=1, timeout=left)
            for ref in done:
                called = calls[ref]
                try:
                    answer = ray.get(ref)
                except RayError as error:
                    if isinstance(called, int):
                        reports[called] = str(error)
                    else:  # the agent is gone, or has failed: nobody knows which ranks it has released
                        again = self._called(self.nodes.pop(called), leave)
                        calls |= again
                        pending += again
                else:
                    reports |= {called: answer} if isinstance(called, int) else unpacked(answer)
            stepped = [self.nodes[node] for ref in done if isinstance(node := calls[ref], str) and node in self.nodes]
            if failed(reports) or any(ranks - set(reports) for ranks in stepped):
                return self._last(
                    reports, {ref: rank for ref in pending if isinstance(rank := calls[ref], int)}, GRACE_S
                )
        return self._last(reports, {}, 0.0)

    def _called(self, ranks: Collection[int], leave: Release | None) -> dict[Any, int | str]:
        return {self.ranks[rank].advance.remote(leave): rank for rank in sorted(ranks)}

    def _missing(self, reports: Mapping[int, Report]) -> tuple[int, ...]:
        return tuple(rank for rank in self.ranks if rank not in reports)

    def _last(self, reports: dict[int, Report], pending: Mapping[Any, int], grace_s: float) -> dict[int, Report]:
        """The same with what others report within the grace. Agents say who has come so far, as those are not late."""
        late = [self.agents[node].reports.remote(grace_s) for node, its in self.nodes.items() if its - set(reports)]
        waiting = [*late, *pending]
        if waiting:
            time_s = grace_s + (ANSWER_S if late else 0.0)
            done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=time_s)
            for ref in done:
                try:
                    answer = ray.get(ref)
                except RayError as error:
                    if ref in pending:
                        reports[pending[ref]] = str(error)
                else:
                    reports |= {pending[ref]: answer} if ref in pending else unpacked(answer)
        return reports


def unpacked(answer: Mapping[int, bytes]) -> dict[int, Report]:
    """An agent's answer, by rank: each report follows a byte that says whether it is an arrival."""
    return {rank: pickle.loads(report[1:]) for rank, report in answer.items()}


def failed(reports: Mapping[int, Report]) -> bool:
    """Whether one of these says that its rank cannot go on."""
    return not all(isinstance(report, Arrival) for report in reports.values())
