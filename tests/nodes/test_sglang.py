"""The engine ``sglang`` with the driver on a head that has no CPU for ranks, and SGLang's real schedulers elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raylaunch import LaunchConfig
from raylaunch.config import shipped_configs
from tests.nodes.clients import LONG
from tests.nodes.hosts import Hosts, address, can_make_hosts, host_of
from tests.sglang.test_real_ranks import can_run, config_of, shared_memory

__all__ = ["can_run"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not can_make_hosts(), reason="needs the right to make network namespaces"),
]

PORT = 31260
LAUNCH_S = 300.0
METRICS = "engine.sglang.args.enable_metrics=true"
NOT_NICE = {"RAY_worker_niceness": "0"}  # or ranks wait for whatever else this machine does


@dataclass
class Server:
    """``raylaunch serve`` on host 0, ended with all that it has started."""

    hosts: Hosts
    config: LaunchConfig
    log: Path = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)
    url: str = f"http://{address(0)}:{PORT}"

    def __enter__(self) -> Server:
        file, self.log = self.hosts.folder / "served.yaml", self.hosts.folder / "served.log"
        wanted = self.config.replace({"serve.host": address(0), "serve.port": PORT})
        file.write_text(wanted.model_dump_json(by_alias=True, exclude_unset=True))
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "raylaunch", "serve", str(file)]
            self.process = self.hosts.popen(command, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        print(self.log.read_text()[-8000:])
        self.process.kill()
        self.process.wait(10)

    def run(self, *arguments: str) -> Any:
        """What a client on the head prints."""
        command = [sys.executable, "-m", "tests.nodes.clients", *arguments]
        client = self.hosts.popen(command, stdout=subprocess.PIPE)
        return json.loads(client.communicate(timeout=180)[0])

    def wait_ready(self) -> None:
        """Until it answers. Raises with its log if it ends, or takes too long."""
        end = time.monotonic() + LAUNCH_S
        code = f"import httpx; print(httpx.get('{self.url}/ready', timeout=5).status_code)"
        while self.hosts.ask(code).strip() != "200":
            assert self.process.poll() is None
            assert time.monotonic() < end, "it was not ready in time"
            time.sleep(1)

    def places(self) -> list[dict[str, Any]]:
        """Each rank's node and process, by the status page."""
        found: list[dict[str, Any]] = self.run("places", self.url)
        return found

    def wait_failure(self, code: str) -> dict[str, Any]:
        """What was lost, once it is that."""
        end = time.monotonic() + 60
        while (failure := self.run("failure", self.url)) is None or failure["code"] != code:
            assert time.monotonic() < end, failure
        found: dict[str, Any] = failure
        return found

    def ports(self) -> list[str]:
        """ZeroMQ's, where other hosts reach it."""
        found = self.run("ports", str(self.process.pid), address(0))
        return [f"tcp://{address(0)}:{port}" for port in found if port != PORT]


@contextlib.contextmanager
def strangers(hosts: Hosts, canary: Path, urls: list[str]) -> Iterator[list[int]]:
    """Peers without keys on another host; how many messages they got is there at the end."""
    command = [sys.executable, "-m", "tests.nodes.clients", "strangers", str(canary), *urls]
    process = hosts.popen(command, 1, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    got: list[int] = []
    try:
        assert process.stdout.readline() == b"there\n"
        yield got
        got.append(json.loads(process.communicate(timeout=30)[0]))
    finally:
        process.kill()


def expect_answers(server: Server) -> None:
    answers = server.run("ask", server.url)
    assert (answers["text"], answers["streamed"]) == ("42", "42")
    assert len(answers["long"][0]) == 4, LONG
    assert answers["long"][0] == answers["long"][1]
    assert answers["loads"] == 1
    for of_the_driver_or_rank_0 in ("generation_tokens_total", "num_running_reqs", "max_total_num_tokens"):
        assert re.search(rf"^sglang:{of_the_driver_or_rank_0}\{{.*\}} ", answers["metrics"], re.MULTILINE)


@pytest.mark.parametrize(
    ("places", "settings"),
    [({1: 2}, ()), ({1: 1, 2: 1}, ("parallel.nodes=2",))],
    ids=["ranks on one host", "ranks on two hosts"],
)
def test_the_driver_is_on_a_head_and_the_ranks_elsewhere(
    places: dict[int, int], settings: tuple[str, ...], tmp_path: Path
) -> None:
    """Launched, verified, answering through the head's port; strangers get and say nothing; a rank that dies is named
    and its group rebuilt; nothing is left on any host."""
    with Hosts(workers=len(places), more=NOT_NICE) as hosts:
        before = {one.pid for one in hosts.processes()}
        with Server(hosts, config_of(METRICS, "recovery.rebuilds=1", *settings)) as server:
            server.wait_ready()
            ranks = {host: hosts.ranks(host) for host in (0, *places)}
            assert {host: len(there) for host, there in ranks.items()} == {0: 0, **places}
            ports = server.ports()
            assert len(ports) == 4
            with strangers(hosts, tmp_path / "canary", ports) as got:
                expect_answers(server)
            assert got == [0]
            last = ranks[max(places)][-1]
            os.kill(last, signal.SIGKILL)
            failure = server.wait_failure("F07")
            assert "killed by SIGKILL" in failure["headline"]
            server.wait_ready()
            expect_answers(server)
            said = server.log.read_text()
            over = re.search(
                r"2 ranks on 2 nodes, over eth0 \(10\.77\.0\.\d\), eth0 \(10\.77\.0\.\d\)", " ".join(said.split())
            )
            assert (over is not None) == (len(places) == 2)
            assert not (tmp_path / "canary").exists()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(90) == 0
        left = [one for one in hosts.processes() if one.pid not in before and "raylaunch" in " ".join(one.cmdline())]
        assert (left, [hosts.ranks(host) for host in ranks]) == ([], [[] for _ in ranks])
        assert shared_memory([]) == []


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_rank_and_then_a_node_is_lost(how: str) -> None:
    """Rank 0, whose end is another case for SGLang than any other's, and then power or cable of rank 1's node: each is
    named, the group is rebuilt, at last on a node that came meanwhile, and nothing is left on those that are there."""
    with Hosts(workers=2, more=NOT_NICE) as hosts:
        before = {one.pid for one in hosts.processes()}
        with Server(hosts, config_of("recovery.rebuilds=2", "recovery.give_up_s=300", "parallel.nodes=2")) as server:
            server.wait_ready()
            places = server.places()
            os.kill(places[0]["pid"], signal.SIGKILL)
            failure = server.wait_failure("F07")
            assert "rank 0 died: killed by SIGKILL" in failure["headline"], failure
            server.wait_ready()
            lost = host_of(server.places()[1]["node"])
            hosts.add()
            {"killed": hosts.kill, "cut off": hosts.cut}[how](lost)
            failure = server.wait_failure("F15")
            assert "rank 1" in failure["headline"], failure
            server.wait_ready()
            kept = [host for host in (1, 2, 3) if host != lost]
            assert [len(hosts.ranks(host)) for host in kept] == [1, 1]
            assert server.run("ask", server.url)["text"] == "42"
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(90) == 0
        left = [one for one in hosts.processes(0) if one.pid not in before and "raylaunch" in " ".join(one.cmdline())]
        assert (left, [hosts.ranks(host) for host in kept]) == ([], [[], []])


def test_a_model_that_one_node_lacks_is_missed_before_it_is_loaded(tmp_path: Path) -> None:
    """F22: with the node."""
    model = tmp_path / "model"
    shutil.copytree(shipped_configs() / "models" / "tiny-adder", model)
    config = config_of(f"model.path={model}", "parallel.nodes=2")
    with Hosts(workers=2, hidden={2: tmp_path}, more=NOT_NICE) as hosts, Server(hosts, config) as server:
        assert server.process.wait(LAUNCH_S) == 1
        said = " ".join(server.log.read_text().split())
        assert re.search(rf"LaunchError \[CONNECT\].* there is no folder {model} on node {address(2)}", said), said
        assert [hosts.ranks(host) for host in (1, 2)] == [[], []]
