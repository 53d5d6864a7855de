"""The actors of one tensor-parallel group: made, stepped, watched, and ended with proof."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylaunch import ray_private
from raylaunch.background import Background
from raylaunch.cluster.placement import STOP_LOOK_S, Placement, gpus_seen, release
from raylaunch.cluster.raylets import raylets_of
from raylaunch.cluster.session import RaySession
from raylaunch.cluster.tcp_probe import TcpProbe
from raylaunch.errors import LaunchError, shut_down
from raylaunch.group.diagnosis import LEFT, NODE_PATTERN
from raylaunch.group.member import Member, kill
from raylaunch.group.outcome import StepOutcome
from raylaunch.group.stepping import Stepper
from raylaunch.group.teardown import Teardown, prove_ended
from raylaunch.protocol import Arrival, Failure, Release

if TYPE_CHECKING:
    from raylaunch_actors.gate import RankState
    from raylaunch_actors.process_watch import Sighting
    from raylaunch_actors.spec import RankSpec

    from raylaunch.group.preloaded import Preloaded
    from raylaunch.group.standby import Standby

SPAWN_EACH_S = 5.0  # on top of deadlines.place: a small node starts the processes of many ranks one by one
NODE_PROBE_S = 3.0
SIGHTINGS_S = 1.0
CLOSE_MARGIN_S = 8.0  # on top of the proof's deadline: a placement group is waited for, too
CLOSE_LOOK_S = 0.1
HEADLESS_S = 3.0  # in which agents of a cluster that goes on without its head can kill ranks


@dataclass
class RankGroup:
    """The ranks of one launch. Owns what it has made so far, and gives it back in :meth:`close` in every outcome.

    Attributes:
        agents: one per node, by node id.
        news: what each agent will say once a process of its node dies, or was stopped for long; by the call, its node.
        lost_nodes: ids of nodes that were found to answer no more; they are not asked again.
        ended_raylets: ids of nodes whose raylet has ended. Their agents end with it, if the node has not lost its power
            anyway: what they do not answer once, they never will.
        raylets: host and port of its nodes' raylets, by node id; the driver's own node cannot be lost to it.
        session: that the group runs in.
        stepper: takes the ranks from gate to gate.
    """

    placement: Placement
    members: list[Member] = field(default_factory=list)
    agents: dict[str, Any] = field(default_factory=dict)
    news: dict[Any, str] = field(default_factory=dict)
    lost_nodes: set[str] = field(default_factory=set)
    ended_raylets: set[str] = field(default_factory=set)
    raylets: dict[str, tuple[str, int]] = field(default_factory=dict)
    session: RaySession = field(default_factory=RaySession)
    stepper: Stepper = field(default_factory=lambda: Stepper({}, {}))

    def start(
        self,
        specs: Sequence[RankSpec],
        standby: Standby,
        stopped: Callable[[], bool] = lambda: False,
        prepare: Callable[[Mapping[str, Any]], None] = lambda agents: None,
        preloaded: Preloaded | None = None,
    ) -> StepOutcome:
        """Starts one actor per rank in its bundle and one agent per node. The outcome is complete, or has the ranks
        whose processes have died meanwhile.

        Args:
            standby: has what need not be started.
            prepare: does with the agents what their nodes need before the ranks begin.
            preloaded: processes of this node that may become ranks.
        Raises:
            LaunchError: one did not start for another reason, or ``stopped`` said that none is wanted any more.
        """
        from raylaunch.group.remote import agent_on, rank_actor

        here = ray.get_runtime_context().get_node_id()
        self.raylets = raylets_of(ray.nodes(), {seat.node_id for seat in self.placement.seats} - {here})
        found = standby.adopt(self, specs)
        self.agents = found.agents
        self.members = [
            Member(
                spec,
                found.actors.get(spec.rank),
                holder=found.holders.get(spec.rank),
                gpus=found.gpus.get(spec.rank, ()),
            )
            for spec in specs
        ]
        for member in self.members:
            member.adopted = member.actor is not None
            if not member.adopted:
                name, where = f"rank{member.rank}", self.bundle_of(member.rank)
                near = preloaded is not None and self.placement.seats[member.rank].node_id == here
                executable = preloaded.executable() if preloaded is not None and near else None
                has_gpus = member.holder is None
                member.actor = rank_actor(member.spec, name, where, has_gpus=has_gpus, executable=executable)
        for node_id in {seat.node_id for seat in self.placement.seats} - self.agents.keys():
            self.agents[node_id] = agent_on(node_id)
        outcome = self._await_processes(specs[0].config.deadlines.place + SPAWN_EACH_S * len(specs), stopped)
        if outcome.complete:
            self.stepper = Stepper({member.rank: member.actor for member in self.members}, self.agents)
            self.stepper.attach({seat.rank: seat.node_id for seat in self.placement.seats})
            prepare(self.agents)
            processes = [member.process for member in self.members if member.process]
            seen = gpus_seen([(process.node_id, process.gpus) for process in processes])
            for member in self.members:
                member.boot = member.actor.boot.remote(seen[member.rank])
                member.held = member.holder.hold.remote() if member.holder is not None else None
            patience = specs[0].config.deadlines.stopped
            self.news = {agent.news.remote(patience): node for node, agent in self.agents.items()}
        return outcome

    def bundle_of(self, rank: int) -> PlacementGroupSchedulingStrategy:
        """Where an actor is put that is to be in a rank's bundle."""
        bundle = self.placement.seats[rank].bundle
        return PlacementGroupSchedulingStrategy(self.placement.group, placement_group_bundle_index=bundle)

    def _await_processes(self, deadline_s: float, stopped: Callable[[], bool]) -> StepOutcome:
        """Waits until all ranks and agents have said where they run. After a failure the others get a moment more:
        the end of a process can be proven only once it has said which one it is."""
        calls = {member.actor.whoami.remote(): member for member in self.members}
        pending = [*(agent.ready.remote() for agent in self.agents.values()), *calls]
        outcome, problem = StepOutcome(), None
        end = time.monotonic() + deadline_s
        while pending and (left := end - time.monotonic()) > 0:
            if stopped():
                raise shut_down("PLACE")
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=min(left, STOP_LOOK_S))
            for ref in done:
                member = calls.get(ref)
                try:
                    answer = ray.get(ref)
                except RayError as error:
                    died = isinstance(error, ActorDiedError) and not error.actor_init_failed
                    if member and died:
                        member.ended, outcome.deaths[member.rank] = True, str(error)
                    problem = problem or LaunchError(
                        f"an actor could not be started: {error}", phase="PLACE", retryable=died
                    )
                    end = min(end, time.monotonic() + SPAWN_EACH_S)
                else:
                    if member:
                        member.process = replace(answer, gpus=member.gpus) if member.holder is not None else answer
                        if answer.node_id in self.agents:
                            self.agents[answer.node_id].follow.remote([answer.pid])
        if outcome.deaths:
            outcome.pending = tuple(member.rank for member in self.members if not member.ended)
            return outcome
        if problem:
            raise problem
        if pending:
            late = ", ".join(str(member.rank) for ref, member in calls.items() if ref in pending) or "none"
            text = f"actors did not start within {deadline_s:g} s (missing ranks: {late})"
            raise LaunchError(f"{text}; deadlines.place allows more", "F08", "PLACE", retryable=True)
        return outcome

    # ---- stepping

    def advance(self, leave: Release | None, wait: Callable[[tuple[int, ...]], float]) -> StepOutcome:
        """Releases every rank and collects what each reports next; stops early at the first failure.

        Args:
            leave: permission to leave the gate they stand at; None for the first step.
            wait: told which ranks are pending, returns seconds to go on waiting; 0 or less ends the step.
        """
        outcome = StepOutcome()
        for rank, report in self.stepper.step(leave, wait).items():
            if isinstance(report, Arrival):
                outcome.arrivals[rank] = report
            elif isinstance(report, Failure):
                outcome.failures[rank] = report
            else:
                outcome.deaths[rank] = report
        known = {*outcome.arrivals, *outcome.failures, *outcome.deaths}
        outcome.pending = tuple(member.rank for member in self.members if member.rank not in known)
        return outcome

    def finish(self, leave: Release, timeout_s: float) -> StepOutcome:
        """Releases every rank from the last gate, after which none arrives anywhere; the outcome has those that did
        not take it."""
        calls = {member.actor.finish.remote(leave): member.rank for member in self.members}
        done, late = ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)
        outcome = StepOutcome(pending=tuple(calls[ref] for ref in late))
        for ref in done:
            try:
                ray.get(ref)
            except RayError as error:
                outcome.deaths[calls[ref]] = str(error)
        return outcome

    # ---- watching

    def ended(self, timeout_s: float) -> StepOutcome:
        """Waits up to ``timeout_s`` for a rank to end, to be seen dying, or to have been stopped for long; the outcome
        has a failure, a death or a sighting for each that did."""
        members = self.members
        boots = {call: one.rank for one in members for call in (one.boot, one.held) if call is not None}
        news = dict(self.news)
        calls = [*boots, *news]
        done, _ = ray.wait(calls, num_returns=1, timeout=timeout_s) if boots else ([], [])
        if not self.session.current():  # which ends the wait, too, and the next call of Ray would start a new one
            raise ConnectionError(self.session.lost())
        if done:
            more, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
            done = more or done
        outcome = StepOutcome()
        for ref in done:
            if ref in news:
                self.news.pop(ref, None)
                with contextlib.suppress(RayError):  # of an agent that is gone, whose ranks' own calls go on
                    outcome.seen |= self._by_rank(news[ref], ray.get(ref))
                continue
            try:
                failure = ray.get(ref)
                if failure is not None:
                    outcome.failures[boots[ref]] = failure
                else:
                    outcome.deaths[boots[ref]] = LEFT
            except RayError as error:
                outcome.deaths[boots[ref]] = str(error)
        stopped = [one.for_s for one in outcome.seen.values() if not one.ended]
        outcome.waited_s = max(stopped, default=0.0)
        return outcome

    def any_ended(self) -> bool:
        """Whether a rank has ended by now."""
        boots = self._boots()
        return bool(boots and ray.wait(boots, num_returns=1, timeout=0)[0])

    def _boots(self) -> list[Any]:
        return [member.boot for member in self.members if member.boot is not None]

    def sightings(self) -> dict[int, Sighting]:
        """The ranks whose processes are dying, gone or stopped now, as the agents of their nodes see them."""
        calls = {agent.seen.remote(): node for node, agent in self.agents.items() if node not in self.lost_nodes}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=SIGHTINGS_S) if calls else ([], [])
        found: dict[int, Sighting] = {}
        for ref in done:
            with contextlib.suppress(RayError):
                found |= self._by_rank(calls[ref], ray.get(ref))
        return found

    def _by_rank(self, node: str, seen: dict[int, Sighting]) -> dict[int, Sighting]:
        processes = [member.process for member in self.members if member.process]
        return {one.rank: seen[one.pid] for one in processes if one.node_id == node and one.pid in seen}

    def states(self, ranks: Sequence[int], timeout_s: float) -> dict[int, RankState]:
        """Health of these ranks; those that do not answer in time are absent."""
        return self.ask("health", ranks, timeout_s)

    def ask(self, method: str, ranks: Sequence[int], timeout_s: float) -> dict[int, Any]:
        """Calls a control method on ranks; errors and late answers are left out."""
        return self.answers(self.pose(method, ranks), timeout_s)

    def pose(self, method: str, ranks: Sequence[int]) -> dict[Any, int]:
        """Calls a control method on ranks and waits for nothing; the calls, each with its rank."""
        members = {member.rank: member for member in self.members}  # none are left once the group is closed
        return {getattr(members[rank].actor, method).remote(): rank for rank in ranks if rank in members}

    def answers(self, calls: Mapping[Any, int], timeout_s: float) -> dict[int, Any]:
        """What calls of :meth:`pose` have brought, by rank; errors and late answers are left out."""
        if not calls:
            return {}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)
        answers = {}
        for ref in done:
            try:
                answers[calls[ref]] = ray.get(ref)
            except RayError:
                continue
        return answers

    def ask_agent(self, rank: int, method: str, *arguments: Any, timeout_s: float = 3.0, default: Any = None) -> Any:
        """Calls the agent of a rank's node; ``default`` if it does not answer."""
        node = self.placement.seats[rank].node_id
        agent = self.agents.get(node)
        if agent is None or node in self.lost_nodes:
            return default
        try:
            return ray.get(getattr(agent, method).remote(*arguments), timeout=timeout_s)
        except RayError:
            return default

    def find_lost_nodes(self, ranks: Sequence[int]) -> set[int]:
        """Asks the nodes of these ranks whether they are there; the ranks whose nodes are not.

        An agent that is late may only be busy, and Ray believes in a node that was cut off for a minute: what counts
        then is whether the node still takes a connection.
        """
        nodes = {rank: self.placement.seats[rank].node_id for rank in ranks}
        asked = (set(nodes.values()) & set(self.raylets)) - self.lost_nodes
        calls = {self.agents[node].ready.remote(): node for node in asked}
        probes = {node: TcpProbe(*self.raylets[node]) for node in asked}
        end = time.monotonic() + NODE_PROBE_S
        if calls:
            ray.wait(list(calls), num_returns=len(calls), timeout=NODE_PROBE_S)
        for ref, node in calls.items():
            try:
                ray.get(ref, timeout=0)
            except ActorDiedError as error:  # of the agent alone, unless Ray says more
                if NODE_PATTERN.search(str(error)):
                    self.lost_nodes.add(node)
            except RayError:
                if not probes[node].answered(end - time.monotonic()):
                    self.lost_nodes.add(node)
            probes[node].close()
        return {rank for rank, node in nodes.items() if node in self.lost_nodes}

    # ---- ending

    def stop(self, timeout_s: float) -> bool:
        """Asks all ranks to leave their serve loops; whether they all did in time."""
        for member in self.members:
            member.actor.stop.remote()
        boots = self._boots()
        done, _ = ray.wait(boots, num_returns=len(boots), timeout=timeout_s) if boots else ([], [])
        return len(done) == len(boots)

    def close(self, deadline_s: float) -> Teardown:
        """Ends every process, proves it, and removes what was made. May be called at any time, more than once. What
        Ray refuses meanwhile is not raised: it is what could not be proven.

        Where Ray's head is gone, whose answer some of its calls await for ever, the session is abandoned.
        """
        began = time.monotonic()
        if self.session.current():
            closing = Background(lambda: self._close(deadline_s))
            while time.monotonic() < began + deadline_s + CLOSE_MARGIN_S:
                if closing.done(CLOSE_LOOK_S):
                    done: Teardown = closing.result()
                    return done
                if self.session.lost() and (self.session.started or time.monotonic() > began + HEADLESS_S):
                    break
            self.session.abandon(self._pids() if self.session.started else ())
        else:
            ray_private.outlast_shutdown()
        left, unseen = tuple(self._pids()), self._unseen()
        count, self.members, self.agents, self.news = len(self.members), [], {}, {}
        return Teardown(count, left=left, unseen=unseen, seconds=time.monotonic() - began)

    def _close(self, deadline_s: float) -> Teardown:
        began = time.monotonic()
        members, agents = self.members, self.agents
        for member in members:
            kill(member.actor)
            kill(member.holder)
        unseen = self._unseen()
        left = prove_ended(self._processes(), self._existing, self._force, began + deadline_s)
        for agent in agents.values():
            kill(agent)
        removed = 0
        if self.placement.owned:
            with contextlib.suppress(RayError):
                removed = 1 if release(self.placement.group) else 0
            self.placement.owned = False
        done = Teardown(len(members), removed, left, unseen, time.monotonic() - began)
        self.members, self.agents, self.news = [], {}, {}
        return done

    def _pids(self) -> list[int]:
        return [member.process.pid for member in self.members if member.process]

    def _unseen(self) -> tuple[int, ...]:
        return tuple(member.rank for member in self.members if not (member.process or member.ended))

    def _processes(self) -> dict[str, set[int]]:
        """The ranks' processes by the id of their node."""
        found: dict[str, set[int]] = {}
        for member in self.members:
            if member.process:
                found.setdefault(member.process.node_id, set()).add(member.process.pid)
        return found

    def _existing(self, node: str, pids: set[int], timeout_s: float) -> set[int] | None:
        """Which of a node's processes exist; None if it does not say so in time. Raises ``LookupError`` if it never
        will: what ran on a node that is gone cannot be seen, and ends with its raylet."""
        agent = self.agents.get(node)
        if agent is None or node in self.lost_nodes:
            raise LookupError(node)
        try:
            return set(ray.get(agent.process_states.remote(self._born(node, pids)), timeout=timeout_s))
        except RayError as error:
            if isinstance(error, ActorDiedError) or node in self.ended_raylets:
                raise LookupError(node) from error
            return None

    def _force(self, node: str, pids: set[int]) -> None:
        self.agents[node].kill.remote(self._born(node, pids))

    def _born(self, node: str, pids: set[int]) -> dict[int, str]:
        """When processes were, by which the agent of their node tells them from others that have their number now."""
        processes = [member.process for member in self.members if member.process and member.process.node_id == node]
        return {one.pid: one.born for one in processes if one.pid in pids}
