"""Several groups behind one port: their metrics and the status page, and one that loses a rank under load."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from raylaunch import LaunchConfig, Replicas
from raylaunch.config import ServeConfig
from raylaunch.serve import metrics, status
from tests.serve.conftest import Live, served
from tests.serve.fake_engine import SETTINGS, FakeEngine, lost
from tests.serve.load import Tally, one_client


@pytest.fixture
def groups() -> tuple[FakeEngine, FakeEngine]:
    return FakeEngine(), FakeEngine()


@pytest.fixture
def client(groups: tuple[FakeEngine, FakeEngine]) -> TestClient:
    replicas = Replicas(LaunchConfig.default([*SETTINGS, "parallel.replicas=2"]))
    replicas.engines = groups  # type: ignore[assignment]
    app = FastAPI()
    router, observed = metrics.build(replicas, ServeConfig())
    app.include_router(router)
    app.include_router(status.build(replicas, ServeConfig(), observed))
    return TestClient(app)


def figures(client: TestClient) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (one.rpartition(" ") for one in lines if one[0] != "#")}


def test_figures_are_told_by_replica(client: TestClient, groups: tuple[FakeEngine, FakeEngine]) -> None:
    groups[1].rebuild(4)
    groups[0].now = replace(groups[0].now, requests=3)
    seen = figures(client)
    assert seen["raylaunch_ready"] == 1
    assert [seen[f'raylaunch_replica_ready{{replica="{number}"}}'] for number in (0, 1)] == [1, 0]
    assert [seen[f'raylaunch_replica_requests{{replica="{number}"}}'] for number in (0, 1)] == [3, 0]
    assert [seen[f'raylaunch_replica_restarts_total{{replica="{number}"}}'] for number in (0, 1)] == [0, 1]
    assert (seen["raylaunch_restarts_total"], seen["raylaunch_requests_running"]) == (1, 2)
    assert seen['raylaunch_rank_steps_total{rank="1",replica="0"}'] == 71
    assert [seen[f'raylaunch_rank_up{{rank="1",replica="{number}"}}'] for number in (0, 1)] == [1, 0]
    assert 'raylaunch_phase_elapsed_seconds{phase="LOAD",replica="1"}' in seen


def test_the_page_is_told_of_each_replica_and_shows_one(
    client: TestClient, groups: tuple[FakeEngine, FakeEngine]
) -> None:
    groups[1].failures = ((5.0, lost()),)
    groups[1].rebuild(4)
    data = client.get("/status.json").json()
    assert (data["ready"], data["replica"], data["step"], len(data["ranks"])) == (True, 0, None, 2)
    assert [(one["ready"], one["condition"], one["restarts"]["done"]) for one in data["replicas"]] == [
        (True, "ready", 0),
        (False, "rebuilding", 1),
    ]
    assert data["failure"]["headline"] == "LaunchError F07 [SERVE, replica 1] rank 1 died: killed by SIGKILL"
    other = client.get("/status.json", params={"replica": 1, "launch": data["revision"]}).json()
    assert (other["ready"], other["replica"], other["step"]["done"]) == (True, 1, 4)
    assert other["launch"] is not None, "the launch of another replica is another one"
    assert {rank["activity"] for rank in other["ranks"]} == {"starting"}
    assert client.get("/status.json", params={"replica": 7}).json()["replica"] == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rank_of_one_replica_is_killed_under_load(capsys: pytest.CaptureFixture[str]) -> None:
    """The server stays ready, no request fails, what the lost one had begun goes on at the other, and it is back."""

    async def scene(live: Live, replicas: Replicas) -> tuple[Tally, float, list[int]]:
        tally, began, codes = Tally(), time.monotonic(), []
        clients = asyncio.gather(*(one_client(live.url, n, began, 60, tally, True) for n in range(16)))
        async with httpx.AsyncClient(base_url=live.url, timeout=5) as operator:
            await asyncio.sleep(5)
            assert all(one.requests for one in replicas.health(ask_ranks=False).replicas)
            os.kill(replicas.engines[1].report.places[0].pid, signal.SIGKILL)
            killed = time.monotonic()
            while replicas.engines[1].health(ask_ranks=False).ready:
                await asyncio.sleep(0.01)
            while not replicas.engines[1].health(ask_ranks=False).ready:
                codes.append((await operator.get("/ready")).status_code)
                await asyncio.sleep(0.1)
            back = time.monotonic() - killed
            await asyncio.sleep(5)
            assert all(one.requests for one in replicas.health(ask_ranks=False).replicas)
        await clients
        return tally, back, codes

    settings = ("parallel.tensor_parallel_size=1", "parallel.replicas=2", "recovery.rebuilds=1")
    config = LaunchConfig.default(["capture.prefill_tokens=[8,32]", "capture.decode_batch_sizes=[2,16]", *settings])
    with Replicas(config) as replicas:
        with served(replicas, ServeConfig(port=0)) as live:
            tally, back, codes = asyncio.run(scene(live, replicas))
        assert [one.restarts for one in replicas.engines] == [0, 1]
        assert replicas.failures[0][1].replica == 1
        continued = replicas.continued
    meanwhile = [at for at in tally.answers_at if 5 < at < 5 + back]
    with capsys.disabled():
        print(
            f"\nback after {back:.1f} s, {len(meanwhile)} answers meanwhile, {tally.answered} in all, "
            f"{continued} went on elsewhere, {len(tally.failed)} failed"
        )
    assert set(codes) == {200}
    assert (tally.wrong, tally.failed) == ([], [])
    assert len(meanwhile) > 20
    assert 0 < continued <= 16
