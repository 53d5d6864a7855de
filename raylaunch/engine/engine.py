"""One group of ranks and its frontend as an engine that is launched, answers requests, and is shut down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray.util.placement_group import PlacementGroup

from raylaunch.config import LaunchConfig
from raylaunch.engine.base import EngineBase
from raylaunch.engine.health import Condition, Health
from raylaunch.engine.supervisor import Supervisor
from raylaunch.errors import ConfigError, LaunchError, RaylaunchError, RequestFailed
from raylaunch.frontends.base import Frontend, Listener, Prepared, Running
from raylaunch.frontends.generation_config import SamplingDefaults, sampling_defaults
from raylaunch.group.driver import StepListener
from raylaunch.model_check import resolve
from raylaunch.protocol import Step
from raylaunch.report import LaunchReport
from raylaunch.resolved import ResolvedLaunch
from raylaunch.tracing.export import Tracer


class Engine(EngineBase):
    """A tensor-parallel model that answers requests.

    Use it as a context manager, or call :meth:`start` and :meth:`shutdown`. It works inside an existing Ray session,
    inside a Ray task or actor, and without any: then it starts a private one. All methods may be called from any
    thread, and many requests may run at once.

    Args:
        config: what to launch; or what :func:`raylaunch.model_check.resolve` has made of it, which is checked.
        placement_group: place the ranks here instead of in a group of their own; it is left alone at the end.
        listener: told before each step of the launch: the step, its index, the number of steps.
    """

    frontend: Frontend

    def __init__(
        self,
        config: LaunchConfig | ResolvedLaunch,
        *,
        placement_group: PlacementGroup | None = None,
        listener: StepListener | None = None,
    ) -> None:
        super().__init__(config, listener)
        self._placement_group = placement_group
        self.frontend = frontend_of(self.config)
        self._supervisor = Supervisor(self.config, self._step, self.frontend)
        self._sampling = SamplingDefaults()

    def start(self, resolved: ResolvedLaunch | None = None) -> Engine:
        """Launches. Returns when requests can be answered.

        Args:
            resolved: what is decided of the launch already, where it was not when the engine was made.
        Raises:
            ConfigError: the configuration cannot be launched; nothing was started.
            LaunchError: the launch failed; everything that was started has been given back.
            RaylaunchError: it was started before.
        """
        if self._supervisor.condition is not Condition.NEW:
            raise RaylaunchError("an Engine is started once; make a new one")
        if (count := self.config.parallel.replicas) > 1:
            expected = "an Engine is one group: raylaunch.Replicas(config) is several"
            raise ConfigError("parallel.replicas", count, expected)
        self._resolved = resolved = resolved or self._resolved or resolve(self.config)
        self._sampling = sampling_defaults(self.config, resolved.revision)
        self._supervisor.sampling = str(self._sampling)
        self._supervisor.start(replace(resolved, placement_group=self._placement_group))
        return self

    def shutdown(self) -> None:
        self._supervisor.stop()

    @property
    def report(self) -> LaunchReport:
        return self._supervisor.report

    def health(self, ask_ranks: bool = True) -> Health:
        return self._supervisor.health(ask_ranks)

    def kept_metrics(self) -> list[Any]:
        return self._supervisor.metrics()

    @property
    def failures(self) -> tuple[tuple[float, LaunchError], ...]:
        return tuple(self._supervisor.failures)

    @property
    def last_error(self) -> LaunchError | None:
        lost = self._supervisor.failures[-1][1] if self._supervisor.failures else None
        return self._supervisor.error or self.frontend.failure() or lost

    @property
    def restarts(self) -> int:
        return self._supervisor.rebuilds

    @property
    def tracer(self) -> Tracer | None:
        return self._supervisor.tracer

    @property
    def resolved(self) -> ResolvedLaunch | None:
        return self._supervisor.resolved or self._resolved

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        return self._sampling.values

    def submit(self, prepared: Prepared, listener: Listener, request_id: str) -> Running:
        if refusal := self.health(ask_ranks=False).refusal(self.config.recovery.while_rebuilding == "wait"):
            raise RequestFailed(refusal)
        return self.frontend.submit(prepared, listener, request_id)

    def _step(self, step: Step, index: int, steps: int) -> None:
        self.frontend.raise_if_failed()  # what cannot work ends the launch before its end
        if self._listener is not None:
            self._listener(step, index, steps)


def frontend_of(config: LaunchConfig) -> Frontend:
    """The frontend of the configured engine; nothing is started yet."""
    if config.engine.kind == "sglang":
        from raylaunch.sglang.frontend import SglangFrontend

        return SglangFrontend(config)
    from raylaunch.frontends.reference import ReferenceFrontend

    return ReferenceFrontend(config)
