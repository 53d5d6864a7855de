"""F15 and F18: a group over two hosts, one of which loses its power or its cable."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.busy import patient
from tests.nodes.driver import NODES_STEPPED
from tests.nodes.hosts import Hosts, can_make_hosts, host_of
from tests.nodes.remote import RemoteDriver

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not can_make_hosts(), reason="needs the right to make network namespaces"),
]

HEALTH_S = 10.0  # the default of deadlines.health
KILLED_S = 8.0  # Ray is told by the broken connection
CUT_S = HEALTH_S + 12.0  # a question asked every 5 s goes unanswered, then every rank and node is asked once more


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts(workers=2) as hosts:
        yield hosts


def driver(hosts: Hosts, *settings: str) -> RemoteDriver:
    return RemoteDriver(hosts.popen, hosts.folder, "parallel.nodes=2", *settings)


def lose(hosts: Hosts, how: str) -> Callable[[int], None]:
    return {"killed": hosts.kill, "cut off": hosts.cut}[how]


@pytest.mark.parametrize(("how", "rank"), [("killed", 0), ("killed", 1), ("cut off", 1)])
def test_a_node_is_lost_while_serving(how: str, rank: int, hosts: Hosts) -> None:
    """It serves over two nodes through gloo and says why; then the rank on the lost node is named, not its peer."""
    with driver(hosts) as remote:
        ready = remote.hear("ready")
        assert len({node for node, _ in ready["places"]}) == 2
        assert "gloo" in ready["table"]
        assert "the group spans 2 nodes" in ready["table"]
        remote.tell("ask")
        assert remote.hear("answer")["text"] == "42"
        remote.tell("lost")
        lost, kept = ready["places"][rank][0], host_of(ready["places"][1 - rank][0])
        assert len(hosts.ranks(kept)) == 1
        lose(hosts, how)(host_of(lost))
        began = time.monotonic()
        error = remote.hear("error")
        took = time.monotonic() - began
        assert hosts.ranks(kept) == []  # the driver is still there: it has ended the peer itself
    print(f"{how}, rank {rank}: {took:.1f} s\n{error['text']}")
    assert (error["code"], error["phase"], error["rank"]) == ("F15", "SERVE", rank), error["text"]
    assert "its node" in error["text"]
    assert f"node {lost}" in next(line for line in error["text"].splitlines() if "<- cause" in line)
    assert took < patient(KILLED_S if how == "killed" else CUT_S)


@pytest.mark.parametrize("more", [(), (NODES_STEPPED,)], ids=["ranks called", "nodes stepped"])
@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_node_is_lost_while_launching(how: str, more: tuple[str, ...], hosts: Hosts) -> None:
    """Long before the deadline of the phase, which is that of a compile."""
    hang = "faults=[{action: sleep, rank: 1, at: capture prefill 8 1}]"
    with driver(hosts, hang, "deadlines.capture=120", *more) as remote:
        places = remote.hear("step", phase="CAPTURE")["places"]
        time.sleep(1)  # rank 1 sleeps by now, and rank 0 waits for it in gloo
        lose(hosts, how)(host_of(places[1][0]))
        began = time.monotonic()
        error = remote.hear("error")
        took = time.monotonic() - began
    print(f"{how}: {took:.1f} s\n{error['text']}")
    assert (error["code"], error["phase"], error["rank"]) == ("F15", "CAPTURE", 1), error["text"]
    assert took < patient(KILLED_S if how == "killed" else CUT_S)


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_the_group_is_rebuilt_on_other_nodes(how: str, hosts: Hosts) -> None:
    """Also on a cluster that goes on believing in the node that was cut off."""
    with driver(hosts, "recovery.rebuilds=1") as remote:
        before = remote.hear("ready")["places"]
        hosts.add()
        remote.tell("rebuilt")
        lost = before[1][0]
        lose(hosts, how)(host_of(lost))
        error = remote.hear("failure")
        after = remote.hear("ready")["places"]
        remote.tell("ask")
        assert remote.hear("answer")["text"] == "42"
    assert (error["code"], error["rank"]) == ("F15", 1), error["text"]
    assert lost not in [node for node, _ in after]
    assert len({node for node, _ in after}) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_node_whose_raylet_alone_ends_is_left_at_once(number: int, hosts: Hosts) -> None:
    """Long before its ranks end, which would hold their memory meanwhile; the group is rebuilt without it, or fails by
    what came first."""
    place = f"deadlines.place={patient(5)}"  # a first launch that is not placed in time would be the one rebuild
    with driver(hosts, "recovery.rebuilds=1", place) as remote:
        before = remote.hear("ready")["places"]
        lost = host_of(before[1][0])
        began = time.time()
        hosts.end_raylet(lost, number)
        remote.tell("lost")
        error = remote.hear("error")
        print(f"{error['at'] - began:.1f} s\n{error['text']}")
        headline = error["text"].splitlines()[0]
        assert (error["code"], error["phase"], error["rank"]) == ("F15", "SERVE", 1), error["text"]
        raylet = (
            f"F15 [SERVE] node {before[1][0]} is lost: its raylet, Ray's process there, has ended; rank 1 ran there"
        )
        workers = (
            "F15 [SERVE] rank 1 died: its node does not answer"  # one that is asked to end ends them before itself
        )
        assert raylet in headline or (number == signal.SIGTERM and workers in headline)
        assert "; the rebuild then failed: F13 [PLACE]" in headline
        assert error["unready"] - began < patient(0.5 if number == signal.SIGKILL else 3.0)
        assert hosts.ranks(lost) == []


def test_the_drivers_own_raylet_ends(hosts: Hosts) -> None:
    """Where no rank runs. Ray would end the ranks later, and nothing can be launched from there."""
    with driver(hosts, "recovery.rebuilds=1") as remote:
        remote.hear("ready")
        began = time.time()
        hosts.end_raylet(0)
        remote.tell("lost")
        error = remote.hear("error")
        assert (error["code"], error["phase"]) == ("F15", "SERVE"), error["text"]
        assert "which the driver runs on, is lost: its raylet" in error["text"]
        assert error["unready"] - began < patient(0.5)
        end = time.monotonic() + patient(5)  # callers are told before the ranks are ended
        while [hosts.ranks(host) for host in (1, 2)] != [[], []] and time.monotonic() < end:
            time.sleep(0.05)
    assert [hosts.ranks(host) for host in (1, 2)] == [[], []]
