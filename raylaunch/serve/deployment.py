"""Ray Serve: replicas that each own a rank group inside their placement group.

``serve run raylaunch.serve.deployment:app config=configs/tiny-cpu.yaml``, a file for ``serve deploy``
(``examples/serve/tiny.yaml``), or ``serve.run(application(config))`` from Python.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import ray
from pydantic import SecretStr
from ray import serve
from ray.serve import Application

from raylaunch.cluster.placement import choose_device, cluster_nodes
from raylaunch.config import LaunchConfig
from raylaunch.config.api_key import key_of_environment
from raylaunch.engine import Engine
from raylaunch.errors import ConfigError
from raylaunch.model_check import on_device, resolve
from raylaunch.serve.limits import MAX_CONCURRENT

REPLICA_CPUS = 1.0
HEALTH_PERIOD_S = 0.5
CONSTRUCTOR_ATTEMPTS = 3
ARGUMENTS = ("config", "set", "replicas")


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
        await asyncio.to_thread(self._engine.start)

    def __serve_build_asgi_app__(self) -> Any:
        from raylaunch.serve.reference.app import build_app

        return build_app(self._engine, self._config.serve, title=f"raylaunch {self._config.name}")

    async def check_health(self) -> None:
        """The group's health. Raises ``RuntimeError`` with the reason: Serve replaces a replica that goes on so."""
        health = await asyncio.to_thread(self._engine.health)
        if not health.ready:
            raise RuntimeError(health.reason)

    async def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)


def application(config: LaunchConfig, *, replicas: int = 1) -> Application:
    """What ``serve.run`` takes.

    A group that is lost is not rebuilt inside its replica: ``recovery.rebuilds`` is for ``raylaunch serve``, here
    Serve replaces the replica. The address and port of ``serve`` are Ray Serve's own.

    Raises:
        ConfigError: it cannot be launched.
    """
    if config.engine.kind == "sglang":
        expected = "Ray Serve's replicas run the reference engine only; run raylaunch serve as a Ray job instead"
        raise ConfigError("engine.kind", "sglang", expected)
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
        num_replicas=replicas,
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
            text with ``;`` between; ``replicas``.
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
    return application(config, replicas=_count(args.get("replicas", 1)))


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
