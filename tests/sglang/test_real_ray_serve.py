"""Ray Serve with SGLang's own scheduler on CPU ranks: two replicas under load, from none to one, and one that fails.

Each replica runs SGLang's tokenizer manager and application on Serve's loop, and owns a group in its placement group.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psutil
import pytest
import yaml

pytest.importorskip("ray.serve.scripts", exc_type=ImportError, reason="needs the serve extra")

from tests.busy import patient
from tests.head import ROOT
from tests.serve.load import Tally, one_client
from tests.serve.test_ray_serve import Served
from tests.sglang.test_real_ranks import can_run, config_of

__all__ = ["can_run"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(520)]

ONE = ("parallel.tensor_parallel_size=1", "environment={}", "serve.drain=30")
READY_S = 300.0


class SglangServed(Served):
    """A head with Ray Serve, and applications of the engine ``sglang``."""

    def __init__(self) -> None:
        super().__init__()
        self.head.more = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'actors'}"}

    def deploy(self, **applications: dict[str, Any]) -> None:
        made = []
        for name, args in applications.items():
            config = self.head.folder / f"{name}.yaml"
            whole = config_of(*ONE, f"name={name}", *args.pop("settings", ()))
            config.write_text(whole.model_dump_json(by_alias=True, exclude_unset=True))
            one = {
                "name": name,
                "import_path": "raylaunch.serve.deployment:app",
                "args": {"config": str(config), **args},
            }
            made.append({**one, "route_prefix": "/" if name == "tiny" else f"/{name}"})
        path = self.head.folder / "serve.yaml"
        http = {"host": "127.0.0.1", "port": self.port}
        path.write_text(yaml.safe_dump({"http_options": http, "applications": made}))
        self.serve("deploy", str(path))

    def replicas(self, name: str) -> list[str]:
        """States of an application's replicas."""
        found = self.status(name).get("deployments", {}).get(name, {}).get("replicas", [])
        return [str(one["state"]) for one in found]

    def get(self, path: str) -> str:
        return str(urllib.request.urlopen(self.url + path, timeout=20).read().decode())


@pytest.fixture(scope="module")
def served() -> Iterator[SglangServed]:
    served = SglangServed()
    served.head.start()
    try:
        yield served
    finally:
        served.head.stop()
    assert served.head.processes() == []


def refused(metrics: str) -> list[str]:
    """Codes other than 200 with which a replica has answered completions."""
    lines = [one for one in metrics.splitlines() if one.startswith("raylaunch_responses_total{")]
    return [one for one in lines if 'path="/v1/completions"' in one and 'code="200"' not in one]


def test_one_of_two_replicas_is_lost_under_load(served: SglangServed, capsys: pytest.CaptureFixture[str]) -> None:
    """No request of the other replica fails, and Serve replaces the lost one."""
    served.deploy(tiny={"replicas": 2})
    started = served.wait(lambda: served.replicas("tiny") == ["RUNNING"] * 2, READY_S)
    assert [served.add(n, 30) for n in range(4)] == [str(n + 30) for n in range(4)]
    before = {one.pid for one in served.ranks()}
    assert len(before) == 2
    groups = [name for name in served.held() if name.startswith("placement-group-")]
    assert len(groups) == 2
    assert all("SERVE_REPLICA" in name for name in groups), "the ranks sit in the replicas' own groups"
    tally, began, killed, done = Tally(), time.monotonic(), 0.0, False

    async def client(number: int) -> None:
        while not done:
            await one_client(served.url, number, began, time.monotonic() - began + 1, tally, True)

    async def scene() -> None:
        nonlocal killed, done
        clients = asyncio.gather(*(client(number) for number in range(16)))
        await asyncio.sleep(5)
        psutil.Process(min(before)).kill()
        killed = time.monotonic() - began

        def replaced() -> bool:
            return len({one.pid for one in served.ranks()} - before) == 1 and served.replicas("tiny") == ["RUNNING"] * 2

        while not await asyncio.to_thread(replaced):
            assert time.monotonic() - began < READY_S
            await asyncio.sleep(1)
        done = True
        await clients

    asyncio.run(scene())
    back = time.monotonic() - began - killed
    seen = {served.get("/raylaunch/metrics") for _ in range(20)}
    with capsys.disabled():
        print(
            f"\nready after {started:.1f} s, back after {back:.1f} s; {tally.answered} answered, {len(tally.failed)} "
            f"failed, the last {max(tally.failed, default=killed) - killed:.1f} s after the loss"
        )
    assert tally.wrong == []
    assert [one for text in seen for one in refused(text)] == []
    assert tally.answered > 100
    assert all(killed <= at < killed + patient(10) for at in tally.failed), "nothing fails once the loss is known"
    with served.streaming(tokens=400) as lines, ThreadPoolExecutor(1) as operator:
        operator.submit(served.serve, "deploy", str(ROOT / "examples" / "serve" / "none.yaml")).result(60)
    assert lines[-2:] == [b"data: [DONE]\n", b"\n"], "the answer that ran was finished"
    served.wait(lambda: served.held() == set(), 60)


def test_from_none_to_one_and_back(served: SglangServed, capsys: pytest.CaptureFixture[str]) -> None:
    """The first request starts the replica and is answered by it; who leaves is aborted; idle, the replica goes."""
    quick = {"upscale_delay_s": 0, "downscale_delay_s": 3, "metrics_interval_s": 1, "look_back_period_s": 2}
    served.deploy(some={"min_replicas": 0, "max_replicas": 1, **quick})
    served.wait(lambda: served.status("some").get("status") == "RUNNING", 60)
    assert served.ranks() == []
    began = time.monotonic()
    body = json.dumps({"text": "12+30=", "sampling_params": {"max_new_tokens": 8}}).encode()
    request = urllib.request.Request(f"{served.url}/some/generate", body, {"content-type": "application/json"})
    assert json.load(urllib.request.urlopen(request, timeout=READY_S))["text"] == "42"
    took = time.monotonic() - began
    assert json.loads(served.get("/some/v1/models"))["data"], "the route prefix is not SGLang's concern"
    leave_in_the_middle(served, "/some/generate")
    served.wait(lambda: json.loads(served.get("/some/status.json"))["requests"]["running"] == 0, patient(10))
    gone = served.wait(lambda: served.ranks() == [], 120)
    served.wait(lambda: not [name for name in served.held() if name.startswith("placement-group-")], 30)
    with capsys.disabled():
        print(f"\nthe first answer after {took:.1f} s; none left {gone:.1f} s after the last")


def leave_in_the_middle(served: SglangServed, path: str) -> None:
    sampling = {"max_new_tokens": 1900, "ignore_eos": True}
    body = json.dumps({"text": "1+1=", "stream": True, "sampling_params": sampling}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", served.port), timeout=30)) as client:
        client.sendall(head.encode() + body)
        assert b"200" in client.recv(15)


def test_serve_status_says_why_a_replica_fails(served: SglangServed) -> None:
    served.deploy(broken={"settings": ["faults=[{action: raise, rank: 0, at: load}]"]})
    served.wait(lambda: served.status("broken").get("status") == "DEPLOY_FAILED", READY_S)
    message = served.status("broken")["deployments"]["broken"]["message"]
    assert "LaunchError [LOAD] rank 0 failed: ValueError: raised on purpose" in message, message
    served.wait(lambda: served.held() == set(), 60)
