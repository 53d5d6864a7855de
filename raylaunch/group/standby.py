"""Standby ranks: spare processes that have imported what a rank imports, and wait for a group that adopts them."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylaunch.cluster.placement import Placement, gpus_seen
from raylaunch.cluster.session import RaySession
from raylaunch.errors import one_line
from raylaunch.group.member import kill
from raylaunch.group.ranks import RankGroup
from raylaunch.group.spares import Spare, chosen, dealt, in_order, missing, pause_after
from raylaunch.protocol.rules.common import count, human_bytes
from raylaunch.report import Standing

if TYPE_CHECKING:
    from raylaunch_actors.spec import RankSpec

LOOK_EVERY_S = 0.5
ADOPT_S = 3.0  # for an answer of a process that imports at most
HOLD_S = 20.0  # for processes that only say which GPUs they were given

log = logging.getLogger(__name__)


@dataclass
class Adopted:
    """What a new group takes over, and ends.

    Attributes:
        actors: of ranks, by rank.
        agents: by node id.
        holders: where ranks are on GPUs: actors that keep what Ray gave, as ranks of their nodes were started without,
            by rank.
        gpus: the ids of those, by rank.
    """

    actors: dict[int, Any] = field(default_factory=dict)
    agents: dict[str, Any] = field(default_factory=dict)
    holders: dict[int, Any] = field(default_factory=dict)
    gpus: dict[int, tuple[str, ...]] = field(default_factory=dict)


class Standby:
    """The spares of one engine, and an agent on each of their nodes. Used by one thread at a time.

    Args:
        per_rank: spares for each rank of a node; 0 makes none.
        session: that they are in.
        lost_nodes: ids of nodes of which nothing is expected any more; read, never changed.
    """

    def __init__(self, per_rank: int, session: RaySession, lost_nodes: set[str]) -> None:
        self.per_rank, self.session, self.lost_nodes = per_rank, session, lost_nodes
        self.spares: list[Spare] = []
        self.agents: dict[str, Any] = {}
        self._private = session.started
        self._deaths = 0
        self._look_at = self._make_at = 0.0
        self._standing = Standing()

    # ---- beside a group that serves

    def tend(self, group: RankGroup) -> Standing:
        """Forgets spares that have ended and makes those that are missing beside ``group``; says how many are ready.
        Waits for nothing and raises nothing: the group serves, whatever becomes of its spares."""
        now = time.monotonic()
        if not self.per_rank or now < self._look_at:
            return self._standing
        self._look_at = now + LOOK_EVERY_S
        try:
            self._listen(now)
            if now >= self._make_at:
                self._make(group)
        except (Exception, SystemExit) as error:  # the second of Ray, where it is shut down meanwhile
            cause = error.cause if isinstance(error, RayTaskError) else error
            log.warning("no ranks stand by any more: %s", one_line(cause))
            self.per_rank = 0
            for spare in self.spares if self.session.current() else ():
                kill(spare.actor)
        ready = [spare.nbytes for spare in self.spares if spare.nbytes and self.per_rank]
        standing = Standing(len(ready), sum(ready))
        if standing != self._standing and len(ready) == len(self.spares) > 0:
            log.info("%s by now, with %s of memory", count(len(ready), "standby rank"), human_bytes(sum(ready)))
        self._standing = standing
        return standing

    def _listen(self, now: float) -> None:
        """Takes in what spares have answered. Raises what one of them has raised: the others will, too."""
        calls = {ref: spare for spare in self.spares for ref in spare.calls}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0) if calls else ([], [])
        for ref in done:
            spare = calls[ref]
            what = spare.calls.pop(ref)
            try:
                setattr(spare, what, ray.get(ref))
            except RayTaskError:
                raise
            except RayError as error:
                if not spare.ended:
                    spare.ended, self._deaths = True, self._deaths + 1
                    self._make_at = now + pause_after(self._deaths)
                    log.info("a standby rank has ended and is replaced: %s", one_line(error))
        self.spares = [one for one in self.spares if not one.ended and one.node_id not in self.lost_nodes]
        self.agents = {node: agent for node, agent in self.agents.items() if node not in self.lost_nodes}

    def _make(self, group: RankGroup) -> None:
        from raylaunch.group.remote import agent_on, rank_actor

        places = {member.rank: member.process for member in group.members if member.process is not None}
        nodes = {rank: process.node_id for rank, process in places.items()}
        for rank in missing(nodes, [spare.node_id for spare in self.spares], self.per_rank):
            spec, node = group.members[rank].spec, nodes[rank]
            used = {gpu for process in places.values() if process.node_id == node for gpu in process.gpus}
            visible = ",".join(sorted(used, key=lambda one: in_order([one])))
            affinity = NodeAffinitySchedulingStrategy(node, soft=False)
            actor = rank_actor(spec, f"standby-{secrets.token_hex(3)}", affinity, stands_by=True)
            spare = Spare(spec, actor, node_id=node, visible=visible)
            self.spares.append(spare)
            spare.calls = {actor.whoami.remote(): "process", actor.prepare.remote(visible): "nbytes"}
            spare.calls[actor.stand_by.remote()] = "boot"
        for node in {spare.node_id for spare in self.spares} - self.agents.keys():
            self.agents[node] = agent_on(node)

    # ---- for the next group

    def adopt(self, group: RankGroup, specs: Sequence[RankSpec]) -> Adopted:
        """What of the spares and agents becomes part of a new ``group``. Those that do not answer are ended, and those
        that fit none of its ranks."""
        nodes = [seat.node_id for seat in group.placement.seats]
        if not self.per_rank or not self.spares:
            return Adopted()
        adopted, seen = self._hold(group, specs, nodes) if specs[0].device == "cuda" else (Adopted(), {})
        found = chosen(specs, nodes, seen, self.spares)
        others, agents = [spare for spare in self.spares if spare not in found.values()], self.agents
        self.spares, self.agents = [one for one in others if chosen(specs, nodes, seen, [one])], {}
        actors: dict[Any, Any] = {rank: spare.actor for rank, spare in found.items()} | agents
        calls: dict[Any, Any] = {spare.actor.adopt.remote(specs[rank]): rank for rank, spare in found.items()}
        calls |= {agent.ready.remote(): node for node, agent in agents.items() if node in nodes}
        there: dict[Any, Any] = {**group.answers(calls, ADOPT_S)}
        unfit = [spare.actor for spare in others if spare not in self.spares]
        for actor in (*unfit, *(actor for key, actor in actors.items() if key not in there)):
            kill(actor)
        adopted.actors = {rank: actors[rank] for rank in found if rank in there}
        adopted.agents = {node: agent for node, agent in agents.items() if node in there}
        return adopted

    def _hold(
        self, group: RankGroup, specs: Sequence[RankSpec], nodes: Sequence[str]
    ) -> tuple[Adopted, dict[str, str]]:
        """Has Ray give GPUs to holders in the place of all ranks whose nodes have spares; with it what is to be
        ``CUDA_VISIBLE_DEVICES`` there, by node. Nothing of both if that cannot be had soon."""
        from raylaunch.group.remote import holder_in

        with_spares = {spare.node_id for spare in self.spares}
        ranks = [spec.rank for spec in specs if nodes[spec.rank] in with_spares]
        holders = {rank: holder_in(group.bundle_of(rank), specs[rank]) for rank in ranks}
        held = group.answers({holder.gpus.remote(): rank for rank, holder in holders.items()}, HOLD_S)
        if len(held) < len(holders):
            for holder in holders.values():
                kill(holder)
            return Adopted(), {}
        gpus = dealt(held, nodes)
        seen = gpus_seen([(nodes[rank], ids) for rank, ids in gpus.items()])
        visible = {nodes[rank]: one[0] for rank, one in zip(gpus, seen, strict=True) if one is not None}
        return Adopted(holders=holders, gpus=gpus), visible

    # ---- ending

    def close(self, deadline_s: float) -> None:
        """Ends every spare, and proves it, after the ranks were ended. May be called more than once."""
        spares, agents, self.spares, self.agents, self._standing = self.spares, self.agents, [], {}, Standing()
        if spares or agents:
            nowhere = Placement(None, (), owned=False)
            done = RankGroup(
                nowhere, members=[*spares], agents=agents, lost_nodes=set(self.lost_nodes), session=self.session
            ).close(deadline_s)
            if done.left and self._private and self.session.lost():  # which may have been abandoned for the ranks
                self.session.abandon(done.left)
            elif done.left or done.unseen:
                log.warning("standby ranks: %s", done)
