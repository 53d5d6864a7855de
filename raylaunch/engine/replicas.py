"""Several groups of ranks that serve the same model behind one port; each is an :class:`Engine` of its own.

A request goes to the ready group that has the fewest, or the beginning of its prompt. When its group is lost it goes on
at another one, as ``recovery.replay`` says; the loss of a group is that group's alone.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from raylaunch.background import LOOK_S, Background
from raylaunch.cluster.session import RaySession, enter
from raylaunch.config import LaunchConfig
from raylaunch.engine.base import EngineBase
from raylaunch.engine.engine import Engine
from raylaunch.engine.health import Health, joined, standing
from raylaunch.engine.router import Router
from raylaunch.errors import LaunchError, RaylaunchError, RequestFailed
from raylaunch.frontends.base import Listener, Prepared, Running
from raylaunch.group.driver import StepListener
from raylaunch.model_check import resolve
from raylaunch.protocol import Step
from raylaunch.report import LaunchReport
from raylaunch.resolved import ResolvedLaunch
from raylaunch.tracing.export import Tracer


class Replicas(EngineBase):
    """``parallel.replicas`` groups in one process, used as one engine.

    Attributes:
        engines: one for each replica, in order.
    """

    def __init__(self, config: LaunchConfig | ResolvedLaunch, *, listener: StepListener | None = None) -> None:
        super().__init__(config, listener)
        self.engines = tuple(
            Engine(one_of(self.config, number), listener=self._listener_of(number))
            for number in range(self.config.parallel.replicas)
        )
        self.frontend = self._router = Router(self.engines)
        for number in range(len(self.engines)):
            self._router.join(number)
        self._indices = [0] * len(self.engines)
        self._session: RaySession | None = None
        self._stopping = threading.Event()

    def start(self) -> Replicas:
        """Launches all groups at the same time. Returns when each can answer requests; one that cannot be launched ends
        the others.

        Raises:
            ConfigError, LaunchError: as :meth:`Engine.start`.
        """
        if self._session is not None:
            raise RaylaunchError("an Engine is started once; make a new one")
        resolved = self._resolved or resolve(self.config)
        each = [replace(resolved, config=one_of(resolved.config, number)) for number in range(len(self.engines))]
        placement, cpus = resolved.config.placement, resolved.request.cpus * len(self.engines)
        self._session = enter(placement.address, cpus, placement.namespace, self._stopping.is_set)
        try:
            starting = [Background(partial(one.start, own)) for one, own in zip(self.engines, each, strict=True)]
            while not all(one.done(LOOK_S) for one in starting):
                self._raise_first(starting)
            self._raise_first(starting)
        except BaseException:
            self.shutdown()
            raise
        return self

    def shutdown(self) -> None:
        self._stopping.set()
        self._router.closed = True
        with ExitStack() as ending:  # each is waited for, whatever another one or a signal raises
            if self._session is not None:
                ending.callback(self._session.close)
            for engine in self.engines:
                ending.callback(Background(engine.shutdown).result)

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

    def kept_metrics(self) -> list[Any]:
        asked = [Background(engine.kept_metrics) for engine in self.engines]
        return [one for kept in asked for one in kept.result()]

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
    def resolved(self) -> ResolvedLaunch | None:
        """What is decided of the first replica's launch; None before the start."""
        return self.engines[0].resolved

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        return self.engines[0].sampling_defaults

    def submit(self, prepared: Prepared, listener: Listener, request_id: str) -> Running:
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


def replicas_of(engine: EngineBase) -> tuple[EngineBase, ...]:
    """The groups behind an engine, each as one."""
    return engine.engines if isinstance(engine, Replicas) else (engine,)


def _of(error: LaunchError, number: int) -> LaunchError:
    error.replica = number
    return error
