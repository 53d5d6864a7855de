"""A node's raylet: its end is seen at once, and is told in words that are true."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from raylaunch.cluster.raylets import Held, RayletWatch, raylets_of
from raylaunch.cluster.tcp_probe import TcpProbe
from raylaunch.group.node_loss import node_lost, nodes_lost, said_of
from raylaunch.group.ray_deaths import drivers_node_lost, said_by_ray
from tests.busy import patient

LISTENS = """
import socket, time
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    time.sleep(60)
"""


def test_the_end_of_a_process_that_listens_is_seen_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", LISTENS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        watch = RayletWatch({"node": ("127.0.0.1", int(process.stdout.readline()))})
        assert watch.lost() == set()
        process.kill()
        began = time.monotonic()
        while not watch.lost() and time.monotonic() < began + 5:
            time.sleep(0.01)
        assert time.monotonic() - began < patient(0.3)
        assert watch.lost() == {"node"}
    watch.close()


def test_a_server_that_only_closes_the_connection_or_speaks_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = Held(*server.getsockname())
        for _ in range(3):
            assert not held.gone()
            connection, _ = server.accept()
            connection.sendall(b"settings")
            assert not held.gone()
            connection.close()
            time.sleep(0.02)
    time.sleep(0.02)
    assert held.gone()


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as a server with a thousand clients has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]
    yield
    for one in opened:
        os.close(one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_servers_of_many_connections_look_at_raylets_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        held = Held(*address)
        assert not held.gone()
        assert not held.gone()
        assert TcpProbe(*address).answered(5)
    held.close()
    assert held.gone()
    assert not TcpProbe(*address).answered(0.2)


def test_one_that_does_not_answer_at_all_is_not_said_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def late(*_: object, **__: object) -> None:
        tried.append(time.monotonic())
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", late)
    held = Held("10.255.255.1", 1)
    assert [held.gone() for _ in range(5)] == [False] * 5
    assert len(tried) == 1


NODES = [
    {"NodeID": "a", "Alive": True, "NodeManagerAddress": "10.0.0.1", "NodeManagerPort": 7},
    {"NodeID": "b", "Alive": False, "NodeManagerAddress": "10.0.0.2", "NodeManagerPort": 8,
     "DeathReasonMessage": "received SIGTERM.\nmore"},
    {"NodeID": "c", "Alive": True, "NodeManagerAddress": "10.0.0.3", "NodeManagerPort": 9},
]  # fmt: skip


def test_raylets_of_the_nodes_that_are_alive() -> None:
    assert raylets_of(NODES, {"a", "b"}) == {"a": ("10.0.0.1", 7)}


@pytest.mark.parametrize(("node", "said"), [("a", ""), ("b", "Ray says: received SIGTERM"), ("x", "")])
def test_what_ray_says_of_a_node(node: str, said: str) -> None:
    assert said_of(NODES, node) == said


@pytest.mark.parametrize(
    ("addresses", "ranks", "said", "line"),
    [
        (["a"], [1], "", "F15 [SERVE] node a is lost: its raylet, Ray's process there, has ended; rank 1 ran there"),
        (["a"], [0, 1], "Ray says: received SIGTERM", "F15 [SERVE] node a is lost: its raylet, Ray's process there, "
         "has ended (Ray says: received SIGTERM); ranks 0, 1 ran there"),
        (["a", "b"], [0, 1], "", "F15 [SERVE] nodes a, b are lost: its raylet, Ray's process there, has ended; "
         "ranks 0, 1 ran there"),
    ],
)  # fmt: skip
def test_a_lost_node_in_words(addresses: list[str], ranks: list[int], said: str, line: str) -> None:
    error = node_lost(addresses, ranks, said)
    assert (error.brief(), error.rank, error.retryable) == (line, ranks[0], True)


def test_the_ranks_of_a_lost_node() -> None:
    def member(rank: int, node: str) -> Any:
        return SimpleNamespace(rank=rank, process=SimpleNamespace(node_id=node, address=f"10.0.0.{rank}"))

    group: Any = SimpleNamespace(members=[member(0, "a"), member(1, "b"), member(2, "b")])
    error = nodes_lost(group, {"b"}, NODES)
    assert error.rank == 1
    assert "node 10.0.0.1 is lost" in error.summary or "node 10.0.0.2 is lost" in error.summary
    assert "(Ray says: received SIGTERM); ranks 1, 2 ran there" in error.summary


DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: Rank\n\tip: 10.0.0.4\n"
EXITED = f"{DIED}The actor is dead because its worker process has died. Worker exit type: "
NODE = "The actor died because its node has died. Node Id: 4f"
OWNER = f"{DIED}The actor is dead because its owner has died. Owner Id: 01 Owner Ip address: 10.0.0.4 Owner worker exit"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (f"{DIED}The actor is dead because it was killed by `ray.kill`.",
         "ended by ray.kill, which somebody has called"),
        (f"{EXITED}INTENDED_SYSTEM_EXIT Worker exit detail: Destroying worker since its placement group was removed. "
         "Placement group id: 78", "ended with its placement group, which somebody has removed"),
        (f"{OWNER} type: SYSTEM_ERROR Worker exit detail: Owner's node has crashed.",
         "ended by Ray, which holds the driver's node for lost"),
        (f"{OWNER} type: SYSTEM_ERROR", "ended by Ray, which holds the driver for dead"),
        (f"{NODE}\n\tthe actor's node was terminated unexpectedly: health check failed due to missing too many "
         "heartbeats", "its node died: health check failed due to missing too many heartbeats"),
        (f"{NODE}\n\tthe actor's node was terminated expectedly: received SIGTERM", "its node died: received SIGTERM"),
        (NODE, ""),
        (f"{EXITED}SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2.", ""),
        ("Worker exits with an exit code 3.", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_said_by_ray(message: str, said: str) -> None:
    assert said_by_ray(message) == said
    assert bool(drivers_node_lost([DIED, message])) is ("driver's node" in said)
