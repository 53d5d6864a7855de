"""Ray Serve: replicas that each own a rank group inside their placement group.

``serve run raylaunch.serve.deployment:app config=configs/tiny-cpu.yaml``, a file for ``serve deploy``
(``examples/serve/tiny.yaml``), or ``serve.run(application(config))`` from Python.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import ray
from pydantic import SecretStr, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from starlette.types import ASGIApp, Receive, Scope, Send

from raylaunch.cluster.placement import choose_device, cluster_nodes
from raylaunch.config import LaunchConfig
from raylaunch.config.api_key import key_of_environment
from raylaunch.engine import Engine
from raylaunch.errors import ConfigError
from raylaunch.model_check import on_device, resolve
from raylaunch.serve import run
from raylaunch.serve.limits import MAX_CONCURRENT

REPLICA_CPUS = 1.0
HEALTH_PERIOD_S = 0.5
CONSTRUCTOR_ATTEMPTS = 3
AUTOSCALING = (
    "min_replicas", "initial_replicas", "max_replicas", "target_ongoing_requests", "upscale_delay_s",
    "downscale_delay_s", "downscale_to_zero_delay_s", "metrics_interval_s", "look_back_period_s",
)  # fmt: skip
"""Ray Serve's own options of an application that grows and shrinks."""
ARGUMENTS = ("config", "set", "replicas", *AUTOSCALING)


@serve.ingress()
class Replica:
    """A replica of Ray Serve: the HTTP application, and the ranks behind it.

    Ray Serve calls the constructor, which returns when requests can be answered; asks ``check_health``; lets running
    requests end when the replica must go; and calls ``__del__`` then. If it is killed, its ranks, which are actors
    that it owns, and its placement group go with it.
    """

    async def __init__(self, config: LaunchConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        """Launches into the replica's placement group.

        Raises:
            LaunchError: Ray Serve shows it, headline first, as the deployment's message.
        """
        self._config = config
        self._engine = Engine(config, placement_group=ray.util.get_current_placement_group())
        if config.engine.kind == "sglang":
            from raylaunch.sglang.frontend import SglangFrontend
            from raylaunch.sglang.loop import Loop

            assert isinstance(self._engine.frontend, SglangFrontend)
            self._engine.frontend.loop = Loop(asyncio.get_running_loop())  # on which Serve runs the application
        await asyncio.to_thread(self._engine.start)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        # Where Serve's proxies listen is not known here: an operator needs a key.
        app, _ = run.application(self._engine, self._config.serve, exposed=self._config.serve.api_key is None)
        return BelowPrefix(app)

    async def check_health(self) -> None:
        """The group's health. Raises ``RuntimeError`` with the reason: Serve replaces a replica that goes on so, which
        a rank that is only busy must not come to. Whether one answers the engine watches, for ``deadlines.health``."""
        health = self._engine.health(ask_ranks=False)
        if not health.ready:
            raise RuntimeError(health.reason)

    async def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)


class BelowPrefix:
    """Takes the application's route prefix off the path, which a request through Serve has in full."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if prefix := scope.get("root_path", ""):
            path = scope["path"].removeprefix(prefix) or "/"
            scope = {**scope, "path": path, "root_path": "" if path.startswith(prefix) else prefix}
        await self.app(scope, receive, send)


def application(
    config: LaunchConfig, *, replicas: int = 1, autoscaling: Mapping[str, Any] | None = None
) -> Application:
    """What ``serve.run`` takes.

    A group that is lost is not rebuilt inside its replica: ``recovery.rebuilds`` is for ``raylaunch serve``, here
    Serve replaces the replica. The address and port of ``serve`` are Ray Serve's own.

    Args:
        replicas: how many there are.
        autoscaling: or between how many, and by what: Serve's options by name. The requests of a replica that are aimed
            at are ``engine.max_running_requests`` unless they are said.
    Raises:
        ConfigError: it cannot be launched.
    """
    run.require_key_for_code(config, exposed=config.serve.api_key is None)
    if config.parallel.replicas > 1:
        expected = "Ray Serve has replicas of its own: leave it at 1, and set the application's replicas"
        raise ConfigError("parallel.replicas", config.parallel.replicas, expected)
    resolved = on_device(resolve(config), _device(config))
    settled, request = (
        config.replace(
            {
                "engine.device": resolved.device,
                "recovery.rebuilds": 0,
                "recovery.standby": 0,
                "recovery.keep_weights": False,
            }
        ),
        resolved.request,
    )
    # Rank 0 and the replica share the first bundle: the group then spans no more nodes than its ranks need.
    first = {**request.bundles[0], "CPU": request.bundles[0].get("CPU", 0.0) + REPLICA_CPUS}
    deployment = serve.deployment(
        Replica,
        name=config.name,
        num_replicas=None if autoscaling else replicas,
        autoscaling_config=_checked(autoscaling, config.engine.max_running_requests) if autoscaling else None,
        ray_actor_options={"num_cpus": REPLICA_CPUS},
        placement_group_bundles=[first, *request.bundles[1:]],
        placement_group_strategy=request.strategy,
        max_ongoing_requests=config.serve.max_concurrent or MAX_CONCURRENT,
        max_queued_requests=config.engine.max_waiting_requests,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=config.deadlines.health,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=config.serve.drain + config.deadlines.shutdown,
        max_constructor_retry_count=CONSTRUCTOR_ATTEMPTS,
    )
    return deployment.bind(settled)


def app(args: Mapping[str, Any]) -> Application:
    """The builder that ``serve run`` and ``serve deploy`` call.

    Args:
        args: ``config``, a YAML file or the name of one that ships; ``set``, a list of KEY=VALUE, or several in one
            text with ``;`` between; ``replicas``, or Serve's options of autoscaling, such as ``min_replicas`` and
            ``max_replicas``.
    Raises:
        ConfigError: an argument is unknown or wrong; nothing was deployed.
    """
    for key in args:
        if key not in ARGUMENTS:
            raise ConfigError(key, args[key], f"unknown argument; known: {', '.join(ARGUMENTS)}")
    changes = args.get("set") or []
    if isinstance(changes, str):
        changes = [one.strip() for one in changes.split(";") if one.strip()]
    name = args.get("config")
    config = LaunchConfig.from_yaml(name, changes) if name else LaunchConfig.default(changes)
    secret = key_of_environment() if config.serve.api_key is None else None
    if secret is not None:
        config = config.replace({"serve.api_key": SecretStr(secret)})
    autoscaling = {key: args[key] for key in AUTOSCALING if key in args}
    if autoscaling and "replicas" in args:
        expected = f"says how many there are, and {next(iter(autoscaling))} between how many: leave one of them out"
        raise ConfigError("replicas", args["replicas"], expected)
    return application(config, replicas=_count(args.get("replicas", 1)), autoscaling=autoscaling)


def _checked(autoscaling: Mapping[str, Any], target: int) -> dict[str, Any]:
    try:
        made = AutoscalingConfig(**{"target_ongoing_requests": target, **autoscaling})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "max_replicas"
        raise ConfigError(key, autoscaling.get(key), first["msg"].removeprefix("Value error, ")) from None
    return made.model_dump(include={"target_ongoing_requests", *autoscaling})


def _count(value: Any) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ConfigError("replicas", value, "must be a number of replicas, 1 or more")
    return count


def _device(config: LaunchConfig) -> str:
    """The device, decided once for all replicas: their bundles depend on it."""
    if config.engine.device == "auto" and not ray.is_initialized():
        expected = "say cpu or cuda, or connect to the cluster first (ray.init): what it has decides"
        raise ConfigError("engine.device", "auto", expected)
    return choose_device(config, cluster_nodes() if ray.is_initialized() else ())
