"""Runs programs that are no engine in real ranks: through Ray, the gates and the driver; ended when they are done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raylaunch.terminal.outcome import interruptible, signals_held

if TYPE_CHECKING:
    from raylaunch.cluster.session import RaySession
    from raylaunch.config import LaunchConfig
    from raylaunch.group.launch import Launched


@contextmanager
def ray_session(config: LaunchConfig, cpus: float) -> Iterator[RaySession]:
    """The Ray session that ``config`` asks for, or a private one with ``cpus`` CPUs. Raises :class:`LaunchError`."""
    from raylaunch.startup.preflight import preflight

    preflight(config)
    from raylaunch.cluster.session import enter

    with interruptible():
        session = enter(config.placement.address, cpus, config.placement.namespace)
        try:
            yield session
        finally:
            with signals_held():
                session.close()


def run_program(config: LaunchConfig, program: str) -> Launched:
    """Takes ranks that run ``program`` (a key of ``raylaunch_actors.rank.PROGRAMS``) through all gates, and ends them.
    What it returns has its report, and what rank 0 handed out at the last gate.

    Raises:
        LaunchError: as any launch.
    """
    from raylaunch.group.launch import launch
    from raylaunch.model.shape import ModelShape
    from raylaunch.model_check import on_device
    from raylaunch.report import LaunchReport
    from raylaunch.resolved import launch_of

    no_model = ModelShape("none", max_positions=0, vocab_size=0, heads=0, kv_heads=0)
    resolved = on_device(launch_of(config, no_model, program), config.engine.device)
    done = launch(resolved, LaunchReport(config.name))
    with signals_held():
        done.group.close(config.deadlines.shutdown)
    return done
