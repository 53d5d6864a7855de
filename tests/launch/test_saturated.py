"""F26: an engine that has more to do than it can is not taken for a dead one."""

from __future__ import annotations

import os
import threading
import time

import pytest

from raylaunch import Engine, EngineBusy, LaunchConfig
from tests.signals import clients

SATURATED_S = 120.0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_saturated_engine_stays_ready(tiny: LaunchConfig) -> None:
    """Far more requests than are decoded at once, on processors that others keep busy too, with a short patience."""
    busy = threading.Event()

    def work() -> None:
        while not busy.is_set():
            sum(range(10_000))

    config = tiny.override("deadlines.health=3", "recovery.rebuilds=1", "engine.max_waiting_requests=64")
    with Engine(config) as engine:

        def ask() -> None:
            try:
                engine.generate("1+1=", max_new_tokens=1500, ignore_eos=True)
            except EngineBusy:
                time.sleep(0.1)

        others = [threading.Thread(target=work, daemon=True) for _ in range(2 * (os.cpu_count() or 1))]
        for one in others:
            one.start()
        unready: list[str] = []
        with clients(ask, 64):
            end = time.monotonic() + SATURATED_S
            while time.monotonic() < end:
                health = engine.health()
                if not health.ready:
                    unready.append(health.reason)
                time.sleep(0.5)
            assert engine.health().requests > 32
            engine.shutdown()
        busy.set()
        assert engine.failures == ()
        assert unready == []
