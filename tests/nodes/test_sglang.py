"""The engine ``sglang`` with the driver on a head that has no CPU for ranks, and SGLang's real schedulers elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.nodes.clients import LONG
from tests.nodes.hosts import Hosts, address, can_make_hosts
from tests.sglang.test_real_ranks import can_run, config_of  # noqa: F401  # the fixture skips where SGLang cannot run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not can_make_hosts(), reason="needs the right to make network namespaces"),
]

PORT = 31260
LAUNCH_S = 300.0


@dataclass
class Server:
    """``raylaunch serve`` on host 0, ended with all that it has started."""

    hosts: Hosts
    settings: tuple[str, ...]
    log: Path = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)
    url: str = f"http://{address(0)}:{PORT}"

    def __enter__(self) -> Server:
        file, self.log = self.hosts.folder / "served.yaml", self.hosts.folder / "served.log"
        wanted = config_of(*self.settings).replace({"serve.host": address(0), "serve.port": PORT})
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

    def ports(self) -> list[str]:
        """ZeroMQ's, where other hosts reach it."""
        root = psutil.Process(self.process.pid)
        found = set()
        for one in (root, *root.children(recursive=True)):
            if one.name().startswith(("raylet", "gcs", "ray::")):
                continue
            for each in one.net_connections("tcp"):
                if each.status == psutil.CONN_LISTEN and each.laddr.ip == address(0) and each.laddr.port != PORT:
                    found.add(f"tcp://{address(0)}:{each.laddr.port}")
        return sorted(found)


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


def test_the_driver_is_on_a_head_and_the_ranks_elsewhere(tmp_path: Path) -> None:
    """Launched, verified, answering through the head's port; strangers get and say nothing; a rank that dies is named
    and its group rebuilt; nothing is left on any host."""
    with Hosts(workers=1) as hosts:
        before = {one.pid for one in hosts.processes()}
        with Server(hosts, ("recovery.rebuilds=1",)) as server:
            server.wait_ready()
            ranks = hosts.ranks(1)
            assert (len(ranks), hosts.ranks(0)) == (2, [])
            ports = server.ports()
            assert len(ports) == 4
            with strangers(hosts, tmp_path / "canary", ports) as got:
                expect_answers(server)
            assert got == [0]
            os.kill(ranks[1], signal.SIGKILL)
            end = time.monotonic() + 60
            while set(ranks) & set(hosts.ranks(1)) and time.monotonic() < end:
                time.sleep(0.1)
            server.wait_ready()
            expect_answers(server)
            said = server.log.read_text()
            assert "F07" in said
            assert "died: killed by SIGKILL" in said
            assert not (tmp_path / "canary").exists()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(90) == 0
        left = [one for one in hosts.processes() if one.pid not in before and "raylaunch" in " ".join(one.cmdline())]
        assert (left, hosts.ranks(0), hosts.ranks(1)) == ([], [], [])
        assert not [one for one in os.listdir("/dev/shm") if "sglang_loads" in one]
