"""A model's weights on the nodes of a group: whether its ranks can load them, and who keeps them in memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from raylaunch.cluster.placement import Placement
from raylaunch.cluster.session import RaySession
from raylaunch.errors import LaunchError, one_line, shut_down
from raylaunch.group.member import kill
from raylaunch.group.spares import pause_after
from raylaunch.logs import about
from raylaunch.model.load_formats import OF_REFERENCE, Weights, weights_of
from raylaunch.protocol import Phase
from raylaunch.protocol.rules.common import count, human_bytes
from raylaunch.report import KeptWeights
from raylaunch.resolved import ResolvedLaunch

if TYPE_CHECKING:
    from raylaunch_actors.weight_keeper import Kept

LOOK_EVERY_S = 0.5
LOOK_S = 0.2

log = logging.getLogger(__name__)


def by_node(resolved: ResolvedLaunch, placement: Placement) -> dict[str, Weights]:
    """What the ranks of each node will read, by its id."""
    ranks: dict[str, list[int]] = {}
    for seat in placement.seats:
        ranks.setdefault(seat.node_id, []).append(seat.rank)
    return {node: weights_of(resolved.config, own, resolved.revision) for node, own in ranks.items()}


def require_loadable(agents: Mapping[str, Any], weights: Mapping[str, Weights], deadline_s: float) -> None:
    """Has every node look whether it has what its ranks need. Raises :class:`LaunchError` F19, before they begin."""
    asked = {node: one for node, one in weights.items() if one.load_format not in OF_REFERENCE}  # of which LOAD says it
    calls = [agents[node].problem_with.remote(one) for node, one in asked.items()]
    for one, problem in zip(asked.values(), ray.get(calls, timeout=deadline_s), strict=True):
        if problem:
            raise LaunchError(f"model.load_format = {one.load_format} {problem}", "F19", Phase.PLACE.name)


@dataclass(eq=False)
class Keeper:
    """The actor that keeps the weights of one node.

    Attributes:
        kept: what it has said last; None before.
        asked: the call that will say more; None if there is none.
        held: the call that lasts as long as it does.
    """

    node_id: str
    weights: Weights
    actor: Any
    kept: Kept | None = None
    asked: Any = None
    held: Any = None


@dataclass
class WeightKeepers:
    """The keepers of one engine, on each of its nodes one. Used by one thread at a time.

    Attributes:
        wanted: whether there are to be any.
        session: that they are in.
        lost_nodes: ids of nodes of which nothing is expected any more; read, never changed.
    """

    wanted: bool
    session: RaySession
    lost_nodes: set[str]
    keepers: dict[str, Keeper] = field(default_factory=dict)
    _weights: Mapping[str, Weights] = field(default_factory=dict)
    _environment: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold keys
    _served: bool = False
    _deaths: int = 0
    _look_at: float = 0.0
    _make_at: float = 0.0

    # ---- before the ranks of a group begin

    def make(self, weights: Mapping[str, Weights], environment: Mapping[str, str]) -> None:
        """Starts a process on each node of a group that has none, and ends those on other nodes. Waits for nothing.

        Args:
            weights: what the group's ranks read on each of its nodes.
            environment: of the ranks, which may say where the Hub's cache is.
        """
        self._weights, self._environment = weights, environment
        for node in [node for node, one in self.keepers.items() if weights.get(node) != one.weights]:
            keeper = self.keepers.pop(node)
            if node not in self.lost_nodes:
                kill(keeper.actor)
        self._make_missing()

    def _make_missing(self) -> None:
        from raylaunch.group.remote import weight_keeper_on

        there = self.keepers.keys() | self.lost_nodes
        for node in [node for node in self._weights if self.wanted and node not in there]:
            self.keepers[node] = Keeper(node, self._weights[node], weight_keeper_on(node, self._environment))

    def begin(self, deadline_s: float, stopped: Callable[[], bool] = lambda: False) -> None:
        """Has those that were just made begin to read, once the files are there.

        Raises:
            LaunchError: a node has not the memory, or no process in time, before any group has served; later the group
                goes on without.
        """
        self._ask_new()
        end, asked = time.monotonic() + deadline_s, [one for one in self.keepers.values() if one.held is None]
        while waiting := [one.asked for one in asked if one in self.keepers.values() and one.held is None]:
            if stopped():
                raise shut_down(Phase.PLACE.name)
            if time.monotonic() > end and self._served:
                return
            if time.monotonic() > end:
                text = f"recovery.keep_weights: no process on {count(len(waiting), 'node')} within {deadline_s:g} s"
                raise LaunchError(f"{text}; deadlines.place allows more", "F08", Phase.PLACE.name, retryable=True)
            ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_S)
            self._listen(time.monotonic())

    def _ask_new(self) -> None:
        for keeper in self.keepers.values():
            if keeper.held is None and keeper.asked is None:
                keeper.asked = keeper.actor.prepare.remote(keeper.weights)

    # ---- beside a group that serves

    def tend(self) -> KeptWeights:
        """Takes another in the place of one that has died; says what is kept. Waits for nothing and raises nothing."""
        now, self._served = time.monotonic(), True
        if self.wanted and now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            try:
                self._listen(now)
                if now >= self._make_at:
                    self._make_missing()
                    self._ask_new()
                for keeper in self.keepers.values():
                    if keeper.asked is None and keeper.kept is not None and keeper.kept.nbytes < keeper.kept.total:
                        keeper.asked = keeper.actor.kept.remote()
            except (Exception, SystemExit) as error:  # the second of Ray, where it is shut down meanwhile
                log.warning("weights are kept no more: %s", one_line(error))
                self.wanted = False
        return self.standing()

    def standing(self) -> KeptWeights:
        """What is kept by now."""
        kept = [keeper.kept for keeper in self.keepers.values() if keeper.kept is not None]
        return KeptWeights(len(kept), sum(one.nbytes for one in kept), all(one.locked for one in kept))

    def _listen(self, now: float) -> None:
        """Takes in what they have answered, and that one has died."""
        calls = {call: one for one in self.keepers.values() for call in (one.asked, one.held) if call is not None}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0) if calls else ([], [])
        for call in done:
            keeper = calls[call]
            try:
                kept: Kept = ray.get(call)
            except RayError as error:
                if self.keepers.pop(keeper.node_id, None) is not None:
                    kill(keeper.actor)
                    self._died(keeper, now, error.cause if isinstance(error, RayTaskError) else error)
            else:
                keeper.asked = None
                self._told(keeper, kept)

    def _told(self, keeper: Keeper, kept: Kept) -> None:
        if kept.problem:
            kill(self.keepers.pop(keeper.node_id).actor)
            text = f"recovery.keep_weights: on node {keeper.node_id[:8]} {kept.problem}"
            if not self._served:
                raise LaunchError(text, "F23", Phase.PLACE.name)
            self.wanted = False
            log.warning("%s; the group goes on without", text, extra=about(fault="F23"))
            return
        if keeper.held is None:
            keeper.held = keeper.actor.hold.remote()
        elif kept.nbytes >= kept.total:
            how = "" if kept.locked else ", unless the kernel takes them back: the limit of locked memory is lower"
            log.info("%s of weights are kept on node %s%s", human_bytes(kept.nbytes), keeper.node_id[:8], how)
        keeper.kept = kept

    def _died(self, keeper: Keeper, now: float, why: Exception) -> None:
        if keeper.node_id in self.lost_nodes:
            return  # which is told as that
        self._deaths += 1
        self._make_at = now + pause_after(self._deaths)
        process = f"process {keeper.kept.pid}" if keeper.kept is not None else "the process"
        text = f"F25: {process}, which keeps the weights on node {keeper.node_id[:8]}, has ended: {one_line(why)}"
        log.warning("%s; the group goes on, and another one is made", text, extra=about(fault="F25"))

    # ---- ending

    def close(self, deadline_s: float) -> None:
        """Ends them all, and waits until they are gone. May be called more than once."""
        keepers, self.keepers = list(self.keepers.values()), {}
        if not keepers or not self.session.current():
            return
        for keeper in keepers:
            kill(keeper.actor)
        ends = [keeper.held for keeper in keepers if keeper.held is not None and keeper.node_id not in self.lost_nodes]
        _, left = ray.wait(ends, num_returns=len(ends), timeout=deadline_s) if ends else ([], [])
        if left and not self.session.lost():
            log.warning("%s of kept weights could not be seen to end", count(len(left), "keeper"))
