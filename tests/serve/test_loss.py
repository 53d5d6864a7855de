"""A rank killed under load: unready at once, a new group, in which the load goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import httpx
import pytest

from raylaunch.config import LaunchConfig, ServeConfig
from raylaunch.engine import Engine
from tests.busy import patient
from tests.serve.conftest import Live, served
from tests.serve.load import Tally, one_client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

RECOVERY = ("recovery.rebuilds=1",)


def test_a_rank_killed_under_load(capsys: pytest.CaptureFixture[str]) -> None:
    """Unready within a second, the group is rebuilt, and every request goes on in it."""

    async def scene(live: Live) -> tuple[Tally, float, float]:
        tally, began = Tally(), time.monotonic()
        clients = asyncio.gather(*(one_client(live.url, n, began, 45, tally, True) for n in range(16)))
        async with httpx.AsyncClient(base_url=live.url, timeout=5) as operator:
            await asyncio.sleep(5)
            assert (await operator.get("/health_generate")).status_code == 200
            os.kill(live.engine.report.places[1].pid, signal.SIGKILL)
            killed = time.monotonic()
            while (await operator.get("/health_generate")).status_code == 200:
                await asyncio.sleep(0.02)
            unready = time.monotonic() - killed
            while (await operator.get("/health_generate")).status_code != 200:
                await asyncio.sleep(0.1)
            rebuilt = time.monotonic() - killed
        await clients
        tally.failed = [at for at in tally.failed if at < 5 + rebuilt + 1]
        return tally, unready, rebuilt

    config = LaunchConfig.default(["capture.prefill_tokens=[8,32]", "capture.decode_batch_sizes=[2,16]", *RECOVERY])
    with Engine(config) as engine, served(engine, ServeConfig(port=0)) as live:
        tally, unready, rebuilt = asyncio.run(scene(live))
        assert engine.health().ready
        assert engine.restarts == 1
    after = [at for at in tally.answers_at if at > 5 + rebuilt]
    with capsys.disabled():
        print(
            f"\nkilled under load: unready after {unready:.2f} s, serving again after {rebuilt:.1f} s, "
            f"{tally.answered} answers, {len(tally.failed)} failed meanwhile, {len(after)} answers after"
        )
    assert unready < patient(1.0)
    assert tally.wrong == []
    assert tally.failed == []
    assert len(after) > 50
