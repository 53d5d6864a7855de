"""Several groups of ranks that serve the same model behind one port; each is an :class:`Engine` of its own.

A request goes to the ready group that has the fewest, or the beginning of its prompt. When its group is lost it goes on
at another one, as ``recovery.replay`` says; the loss of a group is that group's alone.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raylaunch.background import LOOK_S, Background
from raylaunch.cluster.session import RaySession, enter
from raylaunch.config import LaunchConfig
from raylaunch.engine import Engine
from raylaunch.errors import LaunchError, RaylaunchError, ReplicaLost, RequestFailed
from raylaunch.frontends.base import Image, Listener, Meeting, Prepared, Prompt, Running
from raylaunch.frontends.generation_config import SamplingDefaults
from raylaunch.frontends.reference import ReferenceFrontend
from raylaunch.frontends.requests import Chunk, RequestTable, RunningRequest
from raylaunch.group.driver import StepListener
from raylaunch.health import Condition, Health
from raylaunch.model_check import resolve
from raylaunch.protocol import RoundName, Step
from raylaunch.report import LaunchReport, Span
from raylaunch.resolved import ResolvedLaunch
from raylaunch.routing import Remembered, blocks_of, by_prefix, least_loaded
from raylaunch.sampling import SamplingParams
from raylaunch.tracing.export import Tracer

BEST_FIRST = (
    Condition.READY, Condition.REBUILDING, Condition.LAUNCHING, Condition.NEW, Condition.STOPPED, Condition.FAILED,
)  # fmt: skip


class Replicas(Engine):
    """``parallel.replicas`` groups in one process, used as one engine.

    Attributes:
        engines: one for each replica, in order.
    """

    def __init__(self, config: LaunchConfig | ResolvedLaunch, *, listener: StepListener | None = None) -> None:
        self._resolved = config if isinstance(config, ResolvedLaunch) else None
        self.config = config.config if isinstance(config, ResolvedLaunch) else config
        self.engines = tuple(
            Engine(one_of(self.config, number), listener=self._listener_of(number))
            for number in range(self.config.parallel.replicas)
        )
        self.frontend = self._router = Router(self.engines)
        for number in range(len(self.engines)):
            self._router.join(number)
        self._listener = listener
        self._indices = [0] * len(self.engines)
        self._sampling = SamplingDefaults()
        self._session: RaySession | None = None
        self._stopping = threading.Event()

    # ---- life

    def start(self) -> Replicas:
        """Launches all groups at the same time. Returns when each can answer requests; one that cannot be launched ends
        the others.

        Raises:
            ConfigError, LaunchError: as :meth:`Engine.start`.
        """
        if self._session is not None:
            raise RaylaunchError("an Engine is started once; make a new one")
        self._resolved = resolved = self._resolved or resolve(self.config)
        for number, engine in enumerate(self.engines):
            engine._resolved = replace(resolved, config=one_of(resolved.config, number))
        placement, cpus = resolved.config.placement, resolved.request.cpus * len(self.engines)
        self._session = enter(placement.address, cpus, placement.namespace, self._stopping.is_set)
        try:
            starting = [Background(engine.start) for engine in self.engines]
            while not all(one.done(LOOK_S) for one in starting):
                self._raise_first(starting)
            self._raise_first(starting)
        except BaseException:
            self.shutdown()
            raise
        self._sampling = self.engines[0]._sampling
        return self

    def shutdown(self) -> None:
        self._stopping.set()
        self._router.closed = True
        try:
            for ending in [Background(engine.shutdown) for engine in self.engines]:
                ending.result()
        finally:
            if self._session is not None:
                self._session.close()

    @property
    def report(self) -> LaunchReport:
        """That of the first replica that is ready, or of the first one."""
        ready = (engine for engine in self.engines if engine.health(ask_ranks=False).ready)
        return next(ready, self.engines[0]).report

    def health(self, ask_ranks: bool = True) -> Health:
        """Ready if one replica is; ``replicas`` has each."""
        if not ask_ranks:
            return joined([engine.health(ask_ranks=False) for engine in self.engines])
        asked = [Background(engine.health) for engine in self.engines]  # each may wait a second for a rank
        return joined([one.result() for one in asked])

    def best(self, prompt: str | Sequence[int]) -> int:
        """Number of the replica for one more request: as :meth:`Router.choose` says, or where none can take it that
        which can do most."""
        try:
            return self._router.choose(set(), prompt)
        except RequestFailed:
            return min(range(len(self.engines)), key=lambda number: standing(self.engines[number].health(False)))

    @property
    def failures(self) -> tuple[tuple[float, LaunchError], ...]:
        found = [(when, _of(error, number)) for number, one in enumerate(self.engines) for when, error in one.failures]
        return tuple(sorted(found, key=lambda one: one[0]))

    @property
    def last_error(self) -> LaunchError | None:
        """One that is being explained, or else the last one."""
        failures = self.failures
        last = [(number, engine.last_error) for number, engine in enumerate(self.engines)]
        known = [error for _, error in failures]
        new = [_of(error, number) for number, error in last if error is not None and error not in known]
        return [*known, *new][-1] if known or new else None

    @property
    def restarts(self) -> int:
        """How often groups were rebuilt, all of them together."""
        return sum(engine.restarts for engine in self.engines)

    @property
    def tracer(self) -> Tracer | None:
        return self.engines[0].tracer

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache of each replica's ranks holds; 0 while there are no ranks."""
        return self.engines[0].kv_tokens

    # ---- inside

    @property
    def _launch(self) -> ResolvedLaunch:
        return self.engines[0]._launch

    def _submit(self, prepared: Prepared, listener: Listener, request_id: str) -> Running:
        return self._router.submit(prepared, listener, request_id)

    def _listener_of(self, number: int) -> StepListener:
        def step(step: Step, index: int, steps: int) -> None:
            """Tells of the replica that is furthest behind."""
            self._indices[number] = index
            if self._listener is not None and index == min(self._indices):
                self._listener(step, index, steps)

        return step

    def _raise_first(self, starting: Sequence[Background]) -> None:
        for number, one in enumerate(starting):
            try:
                one.raise_if_failed()
            except LaunchError as error:
                raise _of(error, number) from None


def one_of(config: LaunchConfig, number: int) -> LaunchConfig:
    """What one replica launches."""
    return config.replace({"name": f"{config.name}-{number}", "parallel.replicas": 1})


def replicas_of(engine: Engine) -> tuple[Engine, ...]:
    """The groups behind an engine, each as one."""
    return engine.engines if isinstance(engine, Replicas) else (engine,)


def standing(health: Health) -> tuple[bool, int]:
    """The least is that of the group which can do most for a request."""
    return not health.ready, BEST_FIRST.index(health.condition)


def joined(healths: Sequence[Health]) -> Health:
    """The health of all replicas: that of the one which can do most for a request, with the counts of all."""
    best = min(healths, key=standing)
    left, requests = sum(one.restarts_left for one in healths), sum(one.requests for one in healths)
    return replace(best, ranks=(), restarts_left=left, requests=requests, replicas=tuple(healths))


class Router:
    """Takes requests to the groups. What :class:`Engine` asks of a frontend, in front of those of all replicas.

    Attributes:
        closed: no request goes on elsewhere any more.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = engines
        config = engines[0].config.engine
        most = len(engines) * (config.max_running_requests + config.max_waiting_requests)
        self.requests = RequestTable[Routed](None if config.kind == "sglang" else most)  # SGLang queues them itself
        self.spans: list[Span] = []
        self._last = -1
        self._remembered = [(Remembered(), 0) for _ in engines]  # each with the restarts of its group by then
        self._moved, self._lock = 0, threading.Lock()
        self.closed = False

    def join(self, number: int) -> None:
        """Lets the frontend of a replica hand its requests to the others when its ranks are lost."""
        own, first = self.engines[number].frontend, self.engines[0].frontend
        if isinstance(own, ReferenceFrontend):
            own.elsewhere = self.take_elsewhere
            return
        from raylaunch.sglang.frontend import SglangFrontend

        assert isinstance(own, SglangFrontend)
        assert isinstance(first, SglangFrontend)
        own.loop = first.loop  # on which the HTTP application of all runs
        own.others = lambda: [self.engines[one].frontend for one in self.others(number)]

    @property
    def continued(self) -> int:
        return self._moved + sum(engine.frontend.continued for engine in self.engines)

    @property
    def tokenizer(self) -> Any:
        return self.engines[0].tokenizer

    def prepare(self, prompt: Prompt, params: SamplingParams, images: Sequence[Image] = ()) -> Prepared:
        return self.engines[0].frontend.prepare(prompt, params, images)

    def submit(self, prepared: Prepared, listener: Listener, request_id: str) -> Routed:
        request = Routed(self, prepared, listener, request_id)
        self.requests.add(request)
        try:
            request.go_on()
        except BaseException:
            self.requests.remove(request_id)
            raise
        return request

    def choose(self, without: set[int], prompt: str | Sequence[int] = "") -> int:
        """The replica for one more request: a ready one, or one that is rebuilt, if requests wait for that.

        Args:
            without: not these.
            prompt: whose beginning counts, where ``parallel.routing`` says so.
        Raises:
            RequestFailed: there is none.
        """
        healths = [engine.health(ask_ranks=False) for engine in self.engines]
        left = {number: one for number, one in enumerate(healths) if number not in without}
        ready = {number: one.requests for number, one in left.items() if one.ready}
        waits = self.engines[0].config.recovery.while_rebuilding == "wait"
        rebuilt = {number: one.requests for number, one in left.items() if not one.refusal(waits)}
        loads = ready or rebuilt
        if not loads:
            raise RequestFailed(f"the engine is not ready: {joined(healths).reason or 'every replica has lost it'}")
        if not prompt or self.engines[0].config.parallel.routing == "least_loaded":
            self._last = least_loaded(loads, self._last)
        else:
            with self._lock:
                self._last = self._by_prefix(blocks_of(prompt), loads)
        return self._last

    def _by_prefix(self, blocks: Sequence[int], loads: Mapping[int, int]) -> int:
        for number, (one, restarts) in enumerate(self._remembered):
            if restarts != (now := self.engines[number].restarts):
                one.clear()
                self._remembered[number] = (one, now)
        chosen = by_prefix({at: self._remembered[at][0].found(blocks) for at in loads}, loads, self._last)
        self._remembered[chosen][0].add(blocks, self.engines[chosen].kv_tokens)
        return chosen

    def others(self, number: int) -> list[int]:
        """The replicas beside this one that are ready, the least loaded first."""
        beside = [one for one in range(len(self.engines)) if one != number and not self.closed]
        healths = {one: self.engines[one].health(ask_ranks=False) for one in beside}
        return sorted((one for one in beside if healths[one].ready), key=lambda one: healths[one].requests)

    def take_elsewhere(self, request: RunningRequest) -> bool:
        """Has a request whose ranks are lost go on at another replica. Whether it does."""
        routed = self.requests.get(request.request_id)
        return routed is not None and routed.move(request)

    def forget(self, request: Running) -> None:
        assert isinstance(request, Routed)
        request.leave()

    def abort(self, request_id: str) -> bool:
        request = self.requests.get(request_id)
        return request is not None and self.engines[request.at].abort(request_id)

    def failure(self) -> None:
        return None

    def moved(self) -> None:
        """A request has gone on at another replica."""
        with self._lock:
            self._moved += 1

    def __len__(self) -> int:
        return len(self.requests)

    # What concerns one group is asked of its own frontend.

    def begin(self, resolved: ResolvedLaunch) -> None: ...

    def meet(self, where: Meeting) -> None: ...

    def attach(self, offer: Any) -> None: ...

    def raise_if_failed(self) -> None: ...

    def up(self, offer: Any, resolved: ResolvedLaunch) -> None: ...

    def down(self, error: LaunchError, rebuilding: bool = False) -> None: ...

    def trouble(self) -> str:
        return ""

    def busy(self) -> bool:
        return len(self) > 0

    def verify(self, name: RoundName, shape: int) -> bool:
        return False

    def close(self) -> None: ...


class Routed:
    """A request at one of the replicas.

    Attributes:
        at: number of the replica.
    """

    def __init__(self, router: Router, prepared: Prepared, listener: Listener, request_id: str) -> None:
        self.request_id, self.at = request_id, 0
        self._router, self._prepared, self._listener = router, prepared, listener
        self._running: Running | None = None
        self._lost_at: set[int] = set()
        self._begun = self._left = False
        self._lock = threading.Lock()

    @property
    def prompt_tokens(self) -> int:
        return len(self._prepared.ids) if self._running is None else self._running.prompt_tokens

    def go_on(self) -> None:
        """At the replica that has the fewest requests, of those that it was not lost at. Raises as ``submit``."""
        while True:
            self.at = self._router.choose(self._lost_at, self._prepared.text or self._prepared.ids)
            try:
                running = self._router.engines[self.at]._submit(self._prepared, self._hear, self.request_id)
                break
            except RequestFailed:  # lost just now
                self._lost_at.add(self.at)
        with self._lock:
            self._running, left = running, self._left
        if left:
            self._router.engines[self.at].frontend.forget(running)

    def move(self, request: RunningRequest) -> bool:
        """What it has begun goes on at another replica. Whether it does."""
        was = self.at
        for number in self._router.others(was):
            other = self._router.engines[number].frontend
            assert isinstance(other, ReferenceFrontend)
            self.at = number
            if other.take(request):
                return True
        self.at = was
        return False

    def leave(self) -> None:
        """The caller has left."""
        with self._lock:
            self._left, running = True, self._running
        self._router.requests.remove(self.request_id)
        if running is not None:
            self._router.engines[self.at].frontend.forget(running)

    def _hear(self, item: Chunk | RaylaunchError) -> None:
        lost = isinstance(item, RequestFailed) and not self._router.engines[self.at].health(ask_ranks=False).ready
        if lost and not self._begun and not self._left:
            self._lost_at.add(self.at)
            try:
                self.go_on()
                self._router.moved()
                return
            except RaylaunchError:
                pass  # nobody else can take it: the loss is what ended it
        self._begun = True
        if not isinstance(item, Chunk) or item.finish_reason is not None:
            self._router.requests.remove(self.request_id)
        self._listener(ReplicaLost(*item.args) if lost and isinstance(item, RaylaunchError) else item)


def _of(error: LaunchError, number: int) -> LaunchError:
    error.replica = number
    return error
