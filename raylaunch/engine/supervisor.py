"""Keeps one group of ranks and its frontend: launches the group, watches it while it serves, rebuilds it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil

from raylaunch.cluster.session import RELEASE_PATIENCE_S, enter
from raylaunch.config import LaunchConfig
from raylaunch.engine.asking import kept_metrics, rank_healths
from raylaunch.engine.handover import WATCH_S, hand_over
from raylaunch.engine.health import Condition, Health, readiness
from raylaunch.engine.recovery import Budget, Loss, launches_left, restart_policy
from raylaunch.errors import LaunchError, launch_error
from raylaunch.frontends.base import Frontend
from raylaunch.group.diagnosis import NODE_LOST
from raylaunch.group.driver import StepListener
from raylaunch.group.late_verify import LateVerification
from raylaunch.group.launch import Launched, launch
from raylaunch.group.preloaded import preload, preloading
from raylaunch.group.ranks import RankGroup
from raylaunch.group.runtime import EngineRuntime
from raylaunch.group.serving import LostRanks, ServingWatch
from raylaunch.logs import about, about_error
from raylaunch.protocol import Phase
from raylaunch.report import LaunchReport, Span
from raylaunch.resolved import ResolvedLaunch
from raylaunch.startup.signals import of_a_command
from raylaunch.tracing.export import Tracer, open_tracer
from raylaunch.tracing.spans import launch_span

STOP_S = 2.0

log = logging.getLogger(__name__)


class Supervisor:
    """Owns the Ray session, the group, and the frontend that uses it.

    Attributes:
        condition: what the group is in.
        error: why there is none, or the last launch that failed while another is tried.
        failures: losses of the group since it first served: when (seconds since the epoch) and why.
        rebuilds: how often it was launched again.
        tracer: takes spans of launches and requests to where they are wanted; None for nowhere.
        sampling: where sampling parameters come from, for the report.
    """

    def __init__(self, config: LaunchConfig, listener: StepListener, frontend: Frontend) -> None:
        self.config, self.listener, self.frontend = config, listener, frontend
        self.sampling = ""
        self.report = LaunchReport(config.name)
        self._ray_span: Span | None = None
        self.condition = Condition.NEW
        self.error: LaunchError | None = None
        self.failures: list[tuple[float, LaunchError]] = []
        self.rebuilds = 0
        self.tracer: Tracer | None = None
        self.budget = Budget(config.recovery.rebuilds or 0, config.recovery.window_s)
        self._resolved: ResolvedLaunch | None = None
        self._environment: dict[str, str] = {}  # as it was before the first launch
        self._losses: list[Loss] = []  # that were followed by another launch
        self._watch: ServingWatch | None = None
        self._runtime: EngineRuntime | None = None  # from when Ray was entered
        self._launched: Launched | None = None
        self._stopping = threading.Event()
        self._starter: threading.Thread | None = None
        self._idle = threading.Event()  # whether no start is under way
        self._idle.set()
        self._watcher: threading.Thread | None = None
        self._lock = threading.Lock()
        self._ending = threading.RLock()  # of one stop after the other, once there is nobody to wait for

    def start(self, resolved: ResolvedLaunch) -> None:
        """Launches, as often as is allowed, and watches. Raises :class:`LaunchError` with nothing left behind."""
        self._starter, self.config = threading.current_thread(), resolved.config
        self._environment = dict(os.environ)
        self._idle.clear()
        try:
            if resolved.preloaded is None:
                resolved = replace(resolved, preloaded=preload(resolved.config))
            self.frontend.begin(resolved)
            self._resolved = resolved
            self._start(resolved)
        except BaseException:
            self.frontend.close()
            raise
        finally:
            if resolved.preloaded is not None:
                resolved.preloaded.close()
            self._starter = None
            self._idle.set()

    def _start(self, resolved: ResolvedLaunch) -> None:
        began = time.time()
        self.condition = Condition.LAUNCHING
        self.tracer, self.report = open_tracer(os.environ), LaunchReport(self.config.name, began)
        try:
            placement, cpus = resolved.config.placement, resolved.request.cpus
            session = enter(placement.address, cpus, placement.namespace, self._stopping.is_set)
            recovery = resolved.config.recovery
            keeps = recovery.keep_weights and self.budget.rebuilds > 0
            self._runtime = EngineRuntime.in_session(session, spares=recovery.standby, keep_weights=keeps)
            self._ray_span = Span("Ray session", began, time.time())
            self._launch(began)
        except BaseException as error:
            self.condition = Condition.STOPPED if self._stopping.is_set() else Condition.FAILED
            self.error = launch_error(error)
            if self._runtime is None:
                self._trace(self.error)
            try:
                self._tear_down(self.error)
            finally:  # of Ray's, which is shut down meanwhile, or of a second signal
                self._leave()
            raise
        self._watcher = threading.Thread(target=self._keep, name="raylaunch-watch", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Ends the group, fails the requests that still run and leaves Ray as it was found. May be called at any time,
        more than once.

        A launch that is under way, the first or a rebuild, is ended and waited for.
        """
        self._stopping.set()
        try:
            if self._starter is not threading.current_thread():
                self._stop()
            # else: from within the launch, which ends at its next step and gives back what it has made
        finally:
            self._notify_frontend(LaunchError("the engine was shut down"))
            self.frontend.close()

    def _stop(self) -> None:
        self._await_others()
        with self._ending:  # a second one must not leave Ray while the first still ends the group
            with self._lock:
                launched, self._launched = self._launched, None
            try:
                if launched is not None:
                    self._end_group(launched.group)
            finally:  # whatever a signal has raised meanwhile
                if self.condition is not Condition.FAILED:
                    self.condition = Condition.STOPPED
                self._leave()

    def _end_group(self, group: RankGroup) -> None:
        try:
            # Before the ranks say of each request that it was aborted, as if its caller had asked for that.
            self._notify_frontend(LaunchError("the engine was shut down"))
            if not self._silent():
                group.stop(min(STOP_S, self.config.deadlines.shutdown))
        finally:
            group.close(self.config.deadlines.shutdown)

    def _await_others(self) -> None:
        """Waits until nobody launches or watches the group any more; a cluster that is broken may keep them long."""
        while not self._idle.wait(WATCH_S) and not self._silent():
            pass
        if self._watcher is not None and self._watcher is not threading.current_thread():
            while self._watcher.is_alive() and not self._silent():
                self._watcher.join(WATCH_S)

    def health(self, ask_ranks: bool = True) -> Health:
        """Whether requests are answered now; asks the ranks if they serve, unless told not to. Never raises."""
        gone = "" if self._runtime is None or self._runtime.session.current() else self._gone()
        launched, watch = None if gone or not ask_ranks else self._launched, self._watch
        ranks = () if launched is None or not self._serves() else rank_healths(launched.group, self._serves)
        problems = (gone, watch.stalled if watch is not None else "", self.frontend.trouble())
        condition, reason = readiness(self.condition, self.error, self.frontend.failure(), problems)
        health = Health(not reason, condition, reason, (), self.restarts_left, len(self.frontend))
        return health.with_ranks(ranks)

    def _serves(self) -> bool:
        return self.condition is Condition.READY

    def metrics(self) -> list[Any]:
        """Prometheus metrics of the engine's own that ranks on other nodes keep; asks each. Never raises."""
        launched = self._launched
        return [] if launched is None or not self._serves() else kept_metrics(launched.group, self._serves)

    @property
    def restarts_left(self) -> int:
        """How often the group may be launched again."""
        return launches_left(self._losses, time.monotonic(), self.budget)

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
            if attempt == 1 and not self.rebuilds:
                self.report.beside = self.frontend.spans
                self.report.command = psutil.Process().create_time() if of_a_command() else 0.0
            self.frontend.spans = self.report.beside
            if self._ray_span is not None:
                self.report.driver.append(self._ray_span)
                self._ray_span = None
            try:
                assert self._resolved is not None
                launched = launch(
                    self._resolved, self.report, self.listener,
                    stopped=self._cancelled, frontend=self.frontend, runtime=self._runtime,
                )  # fmt: skip
                hand_over(launched, self.frontend, self._cancelled, self._notify_loss)
                break
            except (Exception, SystemExit) as ended:
                error = self._blamed_on_ray(ended)
                self._trace(launch_error(error))
                if not isinstance(error, LaunchError) or not self._may_retry(error):
                    if self.error is not None and not self._stopping.is_set() and isinstance(error, Exception):
                        error = self._after_the_first(launch_error(error))
                    if error is ended:
                        raise
                    raise error from ended
                self.error, attempt, began = self._after_the_first(error), attempt + 1, time.time()
        with self._lock:
            self._launched = launched
        assert self._runtime is not None
        # A node that was cut off for a while may have been used again.
        self._runtime.lost_nodes.difference_update(seat.node_id for seat in launched.group.placement.seats)
        # Where `auto` has led stays; what ranks have settled they settle anew.
        self._resolved = replace(self._resolved, device=launched.resolved.device, request=launched.resolved.request)
        late = LateVerification(launched.group, launched.resolved.plan, self.report, self.frontend)
        self._watch = ServingWatch(launched.group, self._runtime.session, self.config.deadlines, late)
        self.error, self.condition = None, Condition.READY
        self._trace()

    def _trace(self, error: LaunchError | None = None) -> None:
        """Sends the span of a launch that has just ended, well or by ``error``."""
        if self.tracer is not None:
            of_config = {
                "raylaunch.name": self.config.name,
                "raylaunch.engine": self.config.engine.kind,
                "raylaunch.rebuilds": self.rebuilds,
                "raylaunch.ranks": self.config.parallel.tensor_parallel_size,
                "gen_ai.request.model": self.config.model.path,
            }
            self.tracer.send(launch_span(self.report, time.time(), error, of_config))

    def _cancelled(self) -> bool:
        return self._stopping.is_set() or bool(self._gone())

    def _blamed_on_ray(self, error: BaseException) -> BaseException:
        """What a launch ended with: that Ray is gone if it is, whatever ``error`` says itself."""
        if self._stopping.is_set() or not (why := self._gone()):
            return error
        assert self._runtime is not None
        if not isinstance(error, Exception) and self._runtime.session.current():
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

    def _may_retry(self, error: LaunchError) -> bool:
        """Whether another launch may follow ``error``; counts it then, and waits as long as it must."""
        now = time.monotonic()
        verdict = restart_policy(error, self._losses, now, self.budget)
        if not verdict.again or self._stopping.is_set():
            error.given_up = verdict.why_not
            return False
        self._losses.append(Loss(now, error))
        self.rebuilds += 1
        log.warning("it is launched again: %s", error.headline(), extra=about_error(error, launch=self.report.group))
        while not self._cancelled() and (left := now + verdict.pause_s - time.monotonic()) > 0:
            self._stopping.wait(min(left, WATCH_S))
        return True

    def _keep(self) -> None:
        try:
            self._keep_until_lost_for_good()
        except BaseException as error:  # whatever it is, nobody may go on waiting for a group that nobody keeps
            log.exception("the group cannot be kept any more")
            self._give_up(launch_error(error, Phase.SERVE.name))

    def _keep_until_lost_for_good(self) -> None:
        while not self._stopping.is_set() and self._launched is not None and self._watch is not None:
            lost = self._watch.poll(WATCH_S, self.frontend.failure)
            if lost is None or self._stopping.is_set():
                if self._runtime is not None and not self._stopping.is_set() and self.restarts_left:
                    self._runtime.tend(self._launched.group, self.report)
                continue
            if lost.for_good is not None:
                self._give_up(lost.for_good)
                return
            self._lost(self._launched.group, lost)

    def _lost(self, group: RankGroup, lost: LostRanks) -> None:
        """A rank is gone: says so at once, then explains, tears down and rebuilds if that is allowed."""
        if self._runtime is not None:
            self._runtime.lost_nodes.update(lost.nodes)
        self.error = known = lost.known(group)
        self.condition = Condition.REBUILDING
        self._notify_loss(known)  # callers need not wait for the explanation
        with self._preloading():
            self._rebuild(group, lost)

    @contextlib.contextmanager
    def _preloading(self) -> Iterator[None]:
        """Where no rank stands by, the next ones import while those that are lost are asked why and torn down."""
        resolved = self._resolved
        if resolved is None or resolved.config.recovery.standby or not self._may_be_rebuilt():
            yield
            return
        with preloading(resolved.config, self._environment) as preloaded:
            self._resolved = replace(resolved, preloaded=preloaded)
            yield

    def _rebuild(self, group: RankGroup, lost: LostRanks) -> None:
        error = lost.explained(group)
        if lost.violation is not None and self._resolved is not None:  # the next one has all verified first
            self._resolved = replace(self._resolved, plan=replace(self._resolved.plan, verify_first=None))
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
            self._end_spares()
            return
        try:
            self._launch(time.time())
        except (Exception, SystemExit) as again:  # the second of Ray, which is shut down meanwhile
            if not self._stopping.is_set():
                self._fail(error := self._after_the_first(launch_error(again)))
                self._tear_down(error)
                self._end_spares()
            return
        log.info("ready again after %.1f s", self.report.seconds, extra=about(launch=self.report.group))

    def _give_up(self, error: LaunchError) -> None:
        """Ranks that nobody can use, or nobody keeps, are ended: they would hold their GPUs until the engine is."""
        error = self._after_the_first(error)
        if not any(one is error for _, one in self.failures):
            self.failures.append((time.time(), error))
        self._fail(error)
        self._tear_down(error)
        self._end_spares()

    def _tear_down(self, error: LaunchError) -> bool:
        """Ends the group, for which ``error`` is the reason and stays it. Whether that could be done; never raises."""
        with self._lock:
            launched, self._launched = self._launched, None
        self._stop_watching()
        if launched is None:
            return True
        try:
            error.teardown = str(launched.group.close(self.config.deadlines.shutdown))
        except Exception as problem:
            log.exception("the group could not be torn down")
            error.teardown = f"could not be torn down: {type(problem).__name__}: {problem}"
            return False
        if self._runtime is not None:
            self._runtime.lost_nodes.update(launched.group.lost_nodes)
        return True

    def _fail(self, error: LaunchError) -> None:
        self.error, self.condition = error, Condition.FAILED
        self._notify_frontend(error)

    def _end_spares(self) -> None:
        if self._runtime is not None:
            self._runtime.end_processes(self.config.deadlines.shutdown)

    def _may_be_rebuilt(self) -> bool:
        return self.restarts_left > 0 and not self._stopping.is_set()

    def _notify_loss(self, error: LaunchError) -> None:
        self._notify_frontend(error, self._may_be_rebuilt())

    def _notify_frontend(self, error: LaunchError, rebuilding: bool = False) -> None:
        try:
            self.frontend.down(error, rebuilding)
        except Exception:  # of a caller's own: the group must be ended and rebuilt all the same
            log.exception("the frontend could not be told of the group's loss")

    def _gone(self, patience_s: float = RELEASE_PATIENCE_S) -> str:
        return self._runtime.session.ended(patience_s) if self._runtime is not None else ""

    def _silent(self) -> bool:
        """Whether calls of Ray may never be answered."""
        return self._runtime is not None and bool(self._runtime.session.lost())

    def _stop_watching(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def _leave(self) -> None:
        self._stop_watching()
        self._end_spares()
        if self._runtime is not None:
            self._runtime.session.close()
        if self.tracer is not None:
            self.tracer.close()
