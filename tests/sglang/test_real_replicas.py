"""Two groups with SGLang's own scheduler, on CPUs, behind one port: shared out, one of them lost under load."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from raylaunch import Replicas
from raylaunch.config import ServeConfig
from raylaunch.engine.routing import BLOCK_CHARACTERS
from raylaunch.serve.run import bind, serve, url_of
from tests.serve.load import Tally, one_client
from tests.sglang.test_real_ranks import alive, can_run, config_of, shared_memory

__all__ = ["can_run"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(520)]

TWO = (
    "parallel.tensor_parallel_size=1",
    "parallel.replicas=2",
    "parallel.routing=prefix",
    "environment={}",
    "recovery.give_up_s=300",
)
CLIENTS, PROMPTS = 16, ("12+30=" * 20, "7+8=" * 30)
PATIENCE_S = 240.0


def figure(text: str, name: str) -> float:
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + " "))


async def had(operator: httpx.AsyncClient, *prompts: str) -> list[bool]:
    """Asks one after the other. Of each, whether its group had the beginning already, as SGLang says."""
    answers = list[bool]()
    for prompt in prompts:
        body = {"text": prompt, "sampling_params": {"max_new_tokens": 1}}
        answer = (await operator.post("/generate", json=body, timeout=PATIENCE_S)).json()
        answers.append(answer["meta_info"]["cached_tokens"] > BLOCK_CHARACTERS)
    return answers


async def all_have_requests(operator: httpx.AsyncClient) -> None:
    """Waits until the status page shows some for each at once. None has at all times: answers are short."""
    began = time.monotonic()
    while True:
        shown = (await operator.get("/status.json")).json()["replicas"]
        if all(one["requests"] > 0 for one in shown):
            return
        assert time.monotonic() - began < 20, shown
        await asyncio.sleep(0.02)


async def scene(url: str, replicas: Replicas) -> tuple[Tally, float, list[int]]:
    """Prompts go where their beginnings are; clients stream, a rank of replica 1 is killed, and the group comes
    back."""
    async with httpx.AsyncClient(base_url=url) as operator:
        assert await had(operator, *PROMPTS) == [False, False]  # each group has one of them now
        assert await had(operator, *(f"{one}1+1=" for one in (*PROMPTS, *PROMPTS))) == [True] * 4
    tally, began, done = Tally(), time.monotonic(), asyncio.Event()

    async def client(number: int) -> None:
        while not done.is_set():
            await one_client(url, number, time.monotonic(), 1, tally, True, PATIENCE_S)

    clients = asyncio.gather(*(client(number) for number in range(CLIENTS)))
    lost, codes = replicas.engines[1], list[int]()
    async with httpx.AsyncClient(base_url=url, timeout=20) as operator:
        await asyncio.sleep(5)
        page = (await operator.get("/status.json")).json()
        assert [one["ready"] for one in page["replicas"]] == [True, True]
        await all_have_requests(operator)
        os.kill(lost.report.places[0].pid, signal.SIGKILL)
        killed = time.monotonic()
        while lost.health(ask_ranks=False).ready:
            await asyncio.sleep(0.01)
        metrics = (await operator.get("/raylaunch/metrics")).text
        assert [figure(metrics, f'raylaunch_replica_ready{{replica="{one}"}}') for one in (0, 1)] == [1, 0]
        assert await had(operator, *PROMPTS) in ([False, True], [True, False])  # one was lost with its group
        assert await had(operator, *PROMPTS) == [True, True]
        while not lost.health(ask_ranks=False).ready:
            assert time.monotonic() - killed < PATIENCE_S
            codes += [(await operator.get(path)).status_code for path in ("/ready", "/health_generate", "/v1/models")]
            await asyncio.sleep(0.5)
        back = time.monotonic() - killed
        await all_have_requests(operator)
        done.set()
        await clients
        assert (await operator.post("/flush_cache", params={"timeout": 10})).status_code == 200
        assert (await operator.post("/open_session", json={"capacity_of_str_len": 9})).status_code == 400
    print(f"killed {killed - began:.1f} s after the first request")
    return tally, back, codes


def test_one_of_two_groups_is_lost_under_load(capsys: pytest.CaptureFixture[str]) -> None:
    """No request fails: those of the lost one go on at the other, and wait for no other group. With
    ``parallel.routing: prefix``."""
    replicas = Replicas(config_of(*TWO, "recovery.rebuilds=2"))
    with replicas:
        assert [one.text for one in replicas.generate(["12+30=", "7+8=", "45+54="], max_new_tokens=8)] == [
            "42", "15", "99",
        ]  # fmt: skip
        pids = [place.pid for engine in replicas.engines for place in engine.report.places]
        assert len(set(pids)) == 2
        listener, started = bind(ServeConfig(port=0)), threading.Event()

        def ask() -> tuple[Tally, float, list[int]]:
            assert started.wait(60)
            try:
                return asyncio.run(scene(url_of(listener), replicas))
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask)
            serve(replicas, ServeConfig(port=0), listener, say=lambda _: started.set())
            tally, back, codes = asked.result()
        assert [one.restarts for one in replicas.engines] == [0, 1]
        assert replicas.failures[0][1].replica == 1
        pids += [place.pid for place in replicas.engines[1].report.places]
    longest = max(*tally.first, *tally.gaps)
    with capsys.disabled():
        print(
            f"\nback after {back:.1f} s; {tally.answered} answers, {replicas.continued} went on, "
            f"{len(tally.failed)} failed, the longest pause was {longest:.1f} s"
        )
    assert set(codes) == {200}
    assert (tally.failed, tally.wrong) == ([], [])
    assert replicas.continued > 0
    assert longest < 0.7 * back, "nobody waited for the group that took its place"
    assert alive(pids) == []
    assert shared_memory(pids) == []
