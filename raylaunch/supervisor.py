"""Keeps one group of ranks: launches it, watches it while it serves, rebuilds it while restarts are left."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from raylaunch.background import Background
from raylaunch.cluster.raylets import RayletWatch, raylets_of
from raylaunch.cluster.session import RELEASE_PATIENCE_S, RaySession, enter
from raylaunch.config import LaunchConfig
from raylaunch.errors import LaunchError, launch_error, shut_down
from raylaunch.group.diagnosis import NODE_LOST, ended_by, ended_from_outside, stopped_by
from raylaunch.group.driver import StepListener
from raylaunch.group.evidence import explain_failure
from raylaunch.group.launch import Launched, launch, span
from raylaunch.group.node_loss import explain_lost_nodes, nodes_lost
from raylaunch.group.rank_watch import RankWatch
from raylaunch.group.ranks import RankGroup, StepOutcome
from raylaunch.group.ray_deaths import drivers_node_lost
from raylaunch.health import Condition, Health, RankHealth, Stall
from raylaunch.protocol import Phase
from raylaunch.report import LaunchReport, Span
from raylaunch.resolved import ResolvedLaunch

if TYPE_CHECKING:
    from raylaunch_actors.gate import RankState

WATCH_S = 0.1
LOOK_EVERY_S = 0.5  # at the head, to which each look is a connection
ANSWER_S = 1.0  # for a rank to say how it is
ANSWER_LOOK_S = 0.05
STOP_S = 2.0
HEAD_BACK_S = 30.0  # how long ranks may serve without the head of a cluster; Ray ends this process after 60 s

log = logging.getLogger(__name__)


class Supervisor:
    """Owns the Ray session and the group.

    Args:
        on_up, on_down: tell its user when ranks come and go.
        failure: asked all the time why its user can use no ranks any more; None if it can.
    """

    def __init__(
        self,
        config: LaunchConfig,
        listener: StepListener,
        on_up: Callable[[Any, ResolvedLaunch], None],
        on_down: Callable[[LaunchError], None],
        failure: Callable[[], LaunchError | None] = lambda: None,
    ) -> None:
        self.config, self.listener = config, listener
        self.on_up, self.on_down, self.failure = on_up, on_down, failure
        self.sampling = ""
        self.report = LaunchReport(config.name)
        self._ray_span: Span | None = None
        self.condition = Condition.NEW
        self.error: LaunchError | None = None
        self.restarts_left = config.restarts
        self.failures: list[tuple[float, LaunchError]] = []
        self._stall = Stall(config.deadlines.health, config.deadlines.collective)
        self._resolved: ResolvedLaunch | None = None
        self._lost_nodes: set[str] = set()
        self._raylets = RayletWatch({})
        self._looked = 0.0
        self._session: RaySession | None = None
        self._launched: Launched | None = None
        self._stopping = threading.Event()
        self._starter: threading.Thread | None = None
        self._idle = threading.Event()  # whether no start is under way
        self._idle.set()
        self._watcher: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self, resolved: ResolvedLaunch) -> None:
        """Launches, as often as restarts allow, and watches. Raises :class:`LaunchError` with nothing left behind."""
        self._starter, self._resolved, self.config = threading.current_thread(), resolved, resolved.config
        self._idle.clear()
        try:
            self._start(resolved)
        finally:
            self._starter = None
            self._idle.set()

    def _start(self, resolved: ResolvedLaunch) -> None:
        began = time.time()
        self.condition = Condition.LAUNCHING
        try:
            placement, cpus = resolved.config.placement, resolved.request.cpus
            self._session = enter(placement.address, cpus, placement.namespace, self._stopping.is_set)
            self._ray_span = Span("Ray session", began, time.time())
            self._launch(began)
        except BaseException as error:
            self.condition = Condition.STOPPED if self._stopping.is_set() else Condition.FAILED
            self.error = launch_error(error)
            self._leave()
            raise
        self._watcher = threading.Thread(target=self._watch, name="raylaunch-watch", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Ends the group and leaves Ray as it was found. May be called at any time, more than once.

        A launch that is under way, the first or a rebuild, is ended and waited for.
        """
        self._stopping.set()
        if self._starter is threading.current_thread():
            return  # from within the launch, which ends at its next step and gives back what it has made
        self._await_others()
        with self._lock:
            launched, self._launched = self._launched, None
        if launched is not None:
            try:
                if not self._silent():
                    launched.group.stop(min(STOP_S, self.config.deadlines.shutdown))
            finally:
                launched.group.close(self.config.deadlines.shutdown)
        if self.condition is not Condition.FAILED:
            self.condition = Condition.STOPPED
        self._leave()

    def _await_others(self) -> None:
        """Waits until nobody launches or watches the group any more; a cluster that is broken may keep them long."""
        while not self._idle.wait(WATCH_S) and not self._silent():
            pass
        if self._watcher is not None and self._watcher is not threading.current_thread():
            while self._watcher.is_alive() and not self._silent():
                self._watcher.join(WATCH_S)

    def health(self, requests: int, ask_ranks: bool = True) -> Health:
        """How the group is; asks the ranks if it runs. Never raises."""
        launched = self._launched
        ranks: tuple[RankHealth, ...] = ()
        gone = "" if self._session is None or self._session.current() else self._gone()
        if launched is not None and ask_ranks and not gone and self.condition is Condition.READY:
            numbers = [member.rank for member in launched.group.members]
            states = self._states(launched.group, numbers)
            ranks = (
                ()
                if self.condition is not Condition.READY
                else tuple(
                    RankHealth(rank, True, states[rank].activity, states[rank].counters)
                    if rank in states
                    else RankHealth(rank, False, "does not answer", {})
                    for rank in numbers
                )
            )
        silent = gone or next((f"rank {rank.rank} does not answer" for rank in ranks if not rank.answers), "")
        ready = self.condition is Condition.READY and not silent and not self._stall.reason
        reason = "" if ready else self.error.headline() if self.error else silent or self._stall.reason
        reason = reason or ("" if ready else self.condition.value)
        return Health(ready, self.condition.value, reason, ranks, self.restarts_left, requests)

    def _states(self, group: RankGroup, ranks: list[int]) -> dict[int, RankState]:
        """The ranks' own answers. Those of a group that is lost meanwhile are not waited for."""
        asking = Background(lambda: group.states(ranks, timeout_s=ANSWER_S))
        while not asking.done(ANSWER_LOOK_S):
            if self.condition is not Condition.READY:
                return {}
        with contextlib.suppress(Exception, SystemExit):  # Ray's, where it is shut down meanwhile
            return dict(asking.result())
        return {}

    @property
    def resolved(self) -> ResolvedLaunch | None:
        """What is decided of the group that there is; without one what was decided before."""
        launched = self._launched
        return self._resolved if launched is None else launched.resolved

    # ---- launching and watching

    def _launch(self, began: float) -> None:
        attempt = 1
        while True:
            self.report = LaunchReport(self.config.name, began, attempts=attempt, sampling=self.sampling)
            if self._ray_span is not None:
                self.report.driver.append(self._ray_span)
                self._ray_span = None
            try:
                assert self._resolved is not None
                launched = launch(
                    self._resolved, self.report, self.listener,
                    avoid=self._lost_nodes, stopped=self._cancelled, session=self._session,
                )  # fmt: skip
                self._hand_over(launched)
                break
            except (Exception, SystemExit) as ended:
                error = self._blamed_on_ray(ended)
                if not isinstance(error, LaunchError) or not self._may_retry(error):
                    if self.error is not None and not self._stopping.is_set() and isinstance(error, Exception):
                        error = self._after_the_first(launch_error(error))
                    if error is ended:
                        raise
                    raise error from ended
                self.error, attempt, began = self._after_the_first(error), attempt + 1, time.time()
        with self._lock:
            self._launched = launched
        # Where `auto` has led stays; what ranks have settled they settle anew.
        self._resolved = replace(self._resolved, device=launched.resolved.device, request=launched.resolved.request)
        self._stall = Stall(self.config.deadlines.health, self.config.deadlines.collective)
        self._watch_raylets(launched.group)
        self.error, self.condition = None, Condition.READY

    def _cancelled(self) -> bool:
        return self._stopping.is_set() or bool(self._gone())

    def _blamed_on_ray(self, error: BaseException) -> BaseException:
        """What a launch ended with: that Ray is gone if it is, whatever ``error`` says itself."""
        if self._stopping.is_set() or not (why := self._gone()):
            return error
        assert self._session is not None
        if not isinstance(error, Exception) and self._session.current():
            return error  # a signal's SystemExit, which goes first
        phase, teardown = (error.phase, error.teardown) if isinstance(error, LaunchError) else ("", "")
        return LaunchError(why, NODE_LOST, phase, teardown=teardown)

    def _after_the_first(self, error: LaunchError) -> LaunchError:
        """What the service is said to have ended by: its first cause, which ``error`` is or has followed."""
        first = self.error
        if first is None or first is error:
            return error
        first.followers.append(error)
        return first

    def _hand_over(self, launched: Launched) -> None:
        """Lets the group's user take it, and watches meanwhile. If that fails the group is torn down."""
        group = launched.group
        try:
            with span(self.report, "first request", Phase.VERIFY):
                handing = Background(lambda: self.on_up(launched.offer, launched.resolved))
                while not handing.done(WATCH_S):
                    if self._cancelled():
                        raise shut_down(Phase.VERIFY.name)
                    outcome = group.ended(0)
                    if not outcome.complete:
                        error = self._explained(group, outcome, Phase.VERIFY)
                        self._notify_frontend(error)
                        raise error
                handing.raise_if_failed()
            self.report.ready = time.time()
        except BaseException as error:
            teardown = group.close(self.config.deadlines.shutdown)
            if isinstance(error, LaunchError):
                error.teardown = str(teardown)
            raise

    def _explained(self, group: RankGroup, outcome: StepOutcome, phase: Phase) -> LaunchError:
        known = loss(outcome)
        answered = set(outcome.failures) | set(outcome.deaths)
        outcome.pending = tuple(member.rank for member in group.members if member.rank not in answered)
        try:
            return explain_failure(group, outcome, None, phase, outcome.waited_s)
        except Exception:  # with less evidence the group can still be ended and rebuilt
            log.exception("the loss could not be explained")
            return LaunchError(known, "F07", phase.name)

    def _may_retry(self, error: LaunchError) -> bool:
        if not error.retryable or self.restarts_left == 0 or self._stopping.is_set():
            return False
        self.restarts_left -= 1
        return True

    def _watch(self) -> None:
        try:
            self._watch_until_lost_for_good()
        except BaseException as error:  # whatever it is, nobody may go on waiting for a group that nobody keeps
            log.exception("the group cannot be kept any more")
            self._give_up(launch_error(error, Phase.SERVE.name))

    def _watch_until_lost_for_good(self) -> None:
        watch: RankWatch | None = None
        while not self._stopping.is_set() and self._launched is not None:
            group = self._launched.group
            if watch is None or watch.group is not group:
                watch = RankWatch(group, [member.rank for member in group.members], self.config.deadlines.health)
            lost = self._raylets.lost()
            if why := self._session_lost(at_once=bool(lost)):
                self._give_up(LaunchError(why, NODE_LOST, Phase.SERVE.name))
                return
            if lost:
                self._lost(StepOutcome(), lost)
                continue
            try:
                outcome = group.ended(WATCH_S)
                if outcome.complete:
                    outcome = self._ask(watch, outcome)
            except (Exception, SystemExit) as error:  # the second where Ray is shut down meanwhile
                why = self._gone() or f"the Ray session ended: {type(error).__name__}: {error}"
                self._give_up(LaunchError(why, "F15", Phase.SERVE.name))
                return
            if self._stopping.is_set():
                return
            if (failure := self.failure()) is not None:
                self._give_up(failure)
                return
            if why := drivers_node_lost(outcome.deaths.values()):
                self._give_up(LaunchError(why, NODE_LOST, Phase.SERVE.name))
                return
            if not (outcome.complete or self._raylets.lost()):
                self._lost(outcome)

    def _ask(self, watch: RankWatch, outcome: StepOutcome) -> StepOutcome:
        """Finds ranks that are alive and do not answer or do not work: cut off, or stuck."""
        now = time.monotonic()
        states = watch.poll(now)
        if states is None:
            return outcome
        if silent := set(watch.ranks) - set(states):
            outcome.pending, outcome.waited_s = tuple(sorted(silent)), watch.patience_s
        elif self._stall.observe(now, [states[rank].counters for rank in watch.ranks]):
            outcome.pending, outcome.waited_s = tuple(watch.ranks), self._stall.lasts(now)
        return outcome

    def _lost(self, outcome: StepOutcome, nodes: Collection[str] = ()) -> None:
        """A rank is gone: says so at once, then explains, tears down and rebuilds if that is allowed.

        Args:
            nodes: ids of those that are known to be gone with their ranks.
        """
        assert self._launched is not None
        group = self._launched.group
        self._lost_nodes.update(nodes)
        gone = outcome.deaths or outcome.failures or any(one.ended for one in outcome.seen.values())
        code = "F07" if gone else "F08"
        known = nodes_lost(group, nodes) if nodes else LaunchError(loss(outcome), code, Phase.SERVE.name)
        self.error, self.condition = known, Condition.LAUNCHING
        self._notify_frontend(known)  # callers need not wait for the explanation
        error = explain_lost_nodes(group, nodes) if nodes else self._explained(group, outcome, Phase.SERVE)
        torn_down = self._tear_down(error)
        if why := self._gone():
            teardown = error.teardown
            error = LaunchError(f"{why}; {error.summary.splitlines()[0]}", NODE_LOST, error.phase, teardown=teardown)
            torn_down = False
        error.retryable = True
        self.error = error
        self.failures.append((time.time(), error))
        if not (torn_down and self._may_retry(error)):
            self._fail(error)
            return
        try:
            self._launch(time.time())
        except (Exception, SystemExit) as again:  # the second of Ray, which is shut down meanwhile
            if not self._stopping.is_set():
                self._fail(self._after_the_first(launch_error(again)))

    def _watch_raylets(self, group: RankGroup) -> None:
        """Of the group's nodes, and of the driver's own."""
        self._raylets.close()
        self._raylets = RayletWatch({})
        nodes = {member.process.node_id for member in group.members if member.process}
        with contextlib.suppress(Exception):  # a head that is just gone is noticed next
            if nodes:
                here = ray.get_runtime_context().get_node_id()
                self._raylets = RayletWatch(raylets_of(ray.nodes(), {here, *nodes}))

    def _give_up(self, error: LaunchError) -> None:
        """Ranks that nobody can use, or nobody keeps, are ended: they would hold their GPUs until the engine is."""
        error = self._after_the_first(error)
        if not any(one is error for _, one in self.failures):
            self.failures.append((time.time(), error))
        self._fail(error)
        self._tear_down(error)

    def _tear_down(self, error: LaunchError) -> bool:
        """Ends the group, for which ``error`` is the reason and stays it. Whether that could be done; never raises."""
        with self._lock:
            launched, self._launched = self._launched, None
        if launched is None:
            return True
        try:
            error.teardown = str(launched.group.close(self.config.deadlines.shutdown))
        except Exception as problem:
            log.exception("the group could not be torn down")
            error.teardown = f"could not be torn down: {type(problem).__name__}: {problem}"
            return False
        self._lost_nodes |= launched.group.lost_nodes
        return True

    def _fail(self, error: LaunchError) -> None:
        self.error, self.condition = error, Condition.FAILED
        self._notify_frontend(error)

    def _notify_frontend(self, error: LaunchError) -> None:
        try:
            self.on_down(error)
        except Exception:  # the user's own: the group must be ended and rebuilt all the same
            log.exception("the group's user could not be told of its loss")

    def _gone(self, patience_s: float = RELEASE_PATIENCE_S) -> str:
        return self._session.ended(patience_s) if self._session is not None else ""

    def _silent(self) -> bool:
        """Whether calls of Ray may never be answered."""
        return self._session is not None and bool(self._session.lost())

    def _session_lost(self, at_once: bool) -> str:
        """Why the session that the group serves in is no more, looked at now and then."""
        if not at_once and time.monotonic() - self._looked < LOOK_EVERY_S:
            return ""
        self._looked = time.monotonic()
        return self._gone(HEAD_BACK_S)

    def _leave(self) -> None:
        self._raylets.close()
        if self._session is not None:
            self._session.close()


def loss(outcome: StepOutcome) -> str:
    """What is known of a loss without asking further.

    Whoever is lost is not to blame for that: no rank is named but one that was ended from outside, is stopped, or has
    said itself what went wrong in it.
    """
    seen = sorted(outcome.seen.items())
    died = [f"rank {rank} died: {ended_by(one.status or 0)}" for rank, one in seen if ended_from_outside(one)]
    stopped = [f"rank {rank} does not run: {stopped_by(one.status)}" for rank, one in seen if not one.ended]
    own = [failure for _, failure in sorted(outcome.failures.items()) if not failure.victim]
    failed = [f"rank {one.rank} is lost: {one.error}: {next(iter(one.message.splitlines()), '')}" for one in own]
    return "; ".join(died or stopped or failed) or "a rank of the group is lost"
