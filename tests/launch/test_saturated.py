"""F26: an engine that has more to do than it can is not taken for a dead one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from raylaunch import Engine, EngineBusy, LaunchConfig
from tests.signals import clients

SATURATED_S = 120.0


@pytest.fixture
def busy_processors() -> Iterator[None]:
    """Others that never rest, one for each processor."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for one in others:
        one.kill()
        one.wait()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("busy_processors")
def test_a_saturated_engine_stays_ready(tiny: LaunchConfig) -> None:
    """Far more requests than are decoded at once, and health with little patience."""
    config = tiny.override("deadlines.health=3", "recovery.rebuilds=1", "engine.max_waiting_requests=64")
    unready: list[str] = []
    with Engine(config) as engine:

        def ask() -> None:
            try:
                engine.generate("1+1=", max_new_tokens=1500, ignore_eos=True)
            except EngineBusy:
                time.sleep(0.1)

        with clients(ask, 64):
            end = time.monotonic() + SATURATED_S
            while time.monotonic() < end:
                health = engine.health()
                unready += [] if health.ready else [health.reason]
                time.sleep(0.5)
            assert engine.health().requests > 32
            engine.shutdown()
        assert engine.failures == ()
    assert unready == []
