"""Watches a group that serves: ranks that end, do not answer or do not work, nodes and Ray sessions that are lost."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import ray

from raylaunch.cluster.raylets import RayletWatch, raylets_of
from raylaunch.cluster.session import RELEASE_PATIENCE_S, RaySession
from raylaunch.config.sections import DeadlineConfig
from raylaunch.errors import LaunchError
from raylaunch.group.diagnosis import NODE_LOST, ended_by, ended_from_outside, stopped_by
from raylaunch.group.evidence import explain_failure, explain_violation
from raylaunch.group.late_verify import LateVerification
from raylaunch.group.node_loss import explain_lost_nodes, nodes_lost
from raylaunch.group.outcome import StepOutcome
from raylaunch.group.rank_watch import RankWatch, Stall
from raylaunch.group.ranks import RankGroup
from raylaunch.group.ray_deaths import drivers_node_lost
from raylaunch.protocol import Phase, Violation

LOOK_EVERY_S = 0.5  # at the head, to which each look is a connection
HEAD_BACK_S = 30.0  # how long ranks may serve without the head of a cluster; Ray ends this process after 60 s

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LostRanks:
    """What a group that served has lost.

    Attributes:
        outcome: ranks that have ended, or that do not answer or work.
        nodes: ids of nodes that are gone with their ranks.
        violation: the rule that a shape has broken which was verified late: the ranks are there, and must not go on.
        for_good: why no other group can take its place; None if one may.
    """

    outcome: StepOutcome = field(default_factory=StepOutcome)
    nodes: frozenset[str] = frozenset()
    violation: Violation | None = None
    for_good: LaunchError | None = None

    def known(self, group: RankGroup) -> LaunchError:
        """What can be said without asking anybody."""
        if self.nodes:
            return nodes_lost(group, self.nodes)
        if self.violation is not None:
            return explain_violation(group, self.violation)
        gone = self.outcome.deaths or self.outcome.failures or any(one.ended for one in self.outcome.seen.values())
        return LaunchError(known_of(self.outcome), "F07" if gone else "F08", Phase.SERVE.name)

    def explained(self, group: RankGroup) -> LaunchError:
        """The same with every rank's evidence."""
        if self.nodes or self.violation is not None:
            return explain_lost_nodes(group, self.nodes) if self.nodes else self.known(group)
        return explained(group, self.outcome, Phase.SERVE)


class ServingWatch:
    """Watches one group, and what ``late`` finds in it. Used by one thread."""

    def __init__(
        self, group: RankGroup, session: RaySession, deadlines: DeadlineConfig, late: LateVerification
    ) -> None:
        self.group, self._session, self._late = group, session, late
        late.start()
        self._stall = Stall(deadlines.health, deadlines.collective)
        self._ranks = RankWatch(group, [member.rank for member in group.members], deadlines.health)
        self._raylets = raylets_around(group)
        self._looked = 0.0

    @property
    def stalled(self) -> str:
        """Why requests are not answered although all ranks are there; "" if they are."""
        return self._stall.reason

    def poll(self, wait_s: float, failure: Callable[[], LaunchError | None]) -> LostRanks | None:
        """Waits up to ``wait_s`` for a loss. None if there is none.

        Args:
            failure: why the frontend can use no ranks any more; None if it can.
        """
        nodes = self._raylets.lost()
        if why := self._session_lost(at_once=bool(nodes)):
            return _for_good(why)
        if nodes:
            self.group.ended_raylets.update(nodes)
            return LostRanks(nodes=frozenset(nodes))
        try:
            outcome = self.group.ended(wait_s)
            if outcome.complete:
                outcome = self._ask(outcome)
        except (Exception, SystemExit) as error:  # the second where Ray is shut down meanwhile
            why = self._session.ended(RELEASE_PATIENCE_S)
            return _for_good(why or f"the Ray session ended: {type(error).__name__}: {error}")
        if (failed := failure()) is not None:
            return LostRanks(for_good=failed)
        if outcome.complete and self._late.violation is not None:
            return LostRanks(violation=self._late.violation)
        if why := drivers_node_lost(outcome.deaths.values()):
            return _for_good(why)
        # Of a raylet that is lost as well the next look tells: that is the cause.
        return None if outcome.complete or self._raylets.lost() else LostRanks(outcome)

    def close(self) -> None:
        """Gives back what it holds."""
        self._late.stop()
        self._raylets.close()

    def _ask(self, outcome: StepOutcome) -> StepOutcome:
        """Finds ranks that are alive and do not answer or do not work: cut off, or stuck."""
        now = time.monotonic()
        states = self._ranks.poll(now)
        if states is None:
            return outcome
        ranks = self._ranks.ranks
        if silent := set(ranks) - set(states):
            outcome.pending, outcome.waited_s = tuple(sorted(silent)), self._ranks.patience_s
        elif self._stall.observe(now, [states[rank].counters for rank in ranks]):
            outcome.pending, outcome.waited_s = tuple(ranks), self._stall.lasts(now)
        return outcome

    def _session_lost(self, at_once: bool) -> str:
        """Why the session that the group serves in is no more, looked at now and then."""
        if not at_once and time.monotonic() - self._looked < LOOK_EVERY_S:
            return ""
        self._looked = time.monotonic()
        return self._session.ended(HEAD_BACK_S)


def raylets_around(group: RankGroup) -> RayletWatch:
    """Watches the raylets of the group's nodes, and of the driver's own."""
    nodes = {member.process.node_id for member in group.members if member.process}
    with contextlib.suppress(Exception):  # a head that is just gone is noticed next
        if nodes:
            here = ray.get_runtime_context().get_node_id()
            return RayletWatch(raylets_of(ray.nodes(), {here, *nodes}))
    return RayletWatch({})


def explained(group: RankGroup, outcome: StepOutcome, phase: Phase) -> LaunchError:
    """Why ranks were lost, with the evidence of all; with less where that cannot be had. Never raises."""
    known = known_of(outcome)
    answered = set(outcome.failures) | set(outcome.deaths)
    outcome.pending = tuple(member.rank for member in group.members if member.rank not in answered)
    try:
        return explain_failure(group, outcome, None, phase, outcome.waited_s)
    except Exception:  # with less evidence the group can still be ended and rebuilt
        log.exception("the loss could not be explained")
        return LaunchError(known, "F07", phase.name)


def known_of(outcome: StepOutcome) -> str:
    """What is known of a loss without asking further.

    Whoever is lost is not to blame for that: no rank is named but one that was ended from outside, is stopped, or has
    said itself what went wrong in it.
    """
    seen = sorted(outcome.seen.items())
    died = [f"rank {rank} died: {ended_by(one.status or 0)}" for rank, one in seen if ended_from_outside(one)]
    stopped = [f"rank {rank} does not run: {stopped_by(one.status)}" for rank, one in seen if not one.ended]
    own = [failure for _, failure in sorted(outcome.failures.items()) if not failure.secondary]
    failed = [f"rank {one.rank} is lost: {one.error}: {next(iter(one.message.splitlines()), '')}" for one in own]
    return "; ".join(died or stopped or failed) or "a rank of the group is lost"


def _for_good(why: str) -> LostRanks:
    return LostRanks(for_good=LaunchError(why, NODE_LOST, Phase.SERVE.name))
