"""What each rank is told of its launch."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray

from raylaunch import LaunchConfig, LaunchError
from raylaunch.cluster.placement import Node, Placement, Seat
from raylaunch.frontends.base import Meeting
from raylaunch.group import kernels
from raylaunch.group import launch as launching
from raylaunch.group.launch import meeting, require_equal_shares, specs_of
from raylaunch.group.teardown import Teardown
from raylaunch.model.shape import ModelShape
from raylaunch.report import LaunchReport
from raylaunch.resolved import launch_of

SHAPE = ModelShape("tiny", 2048, 16, 4, 4)


def placement_on(nodes):
    seats = [Seat(rank, rank, node, f"10.0.0.{rank}", 0) for rank, node in enumerate(nodes)]
    return Placement(SimpleNamespace(), tuple(seats), owned=True)


@pytest.fixture
def specs(monkeypatch):
    """Specs of ranks on nodes of these names, for a driver on ``here``."""
    driver = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: driver)

    def made(nodes, *settings):
        resolved = launch_of(LaunchConfig.default(settings), SHAPE)
        return specs_of(replace(resolved, device="cpu", placement_group=object()), placement_on(nodes), "tiny-1")

    return made


def test_ranks_are_told_no_api_key(specs):
    told = specs(["here", "here"], "serve.api_key=sesame", "engine.threads=3")
    assert [one.config.serve.api_key for one in told] == [None, None]
    assert [one.placement_group for one in told] == [None, None]
    assert [one.config.engine.threads for one in told] == [3, 3]


@pytest.mark.parametrize(
    ("ranks", "cluster", "seen"),
    [
        (["here", "here"], ["here"], Meeting(True, "10.0.0.9")),
        (["here", "there"], ["here", "there"], Meeting(True, "10.0.0.9", may_move=True)),
        (["there", "there"], ["here", "there"], Meeting(False, "10.0.0.9", may_move=True)),
    ],
)
def test_where_rank_0_is_as_the_driver_sees_it(monkeypatch, ranks, cluster, seen):
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.9")
    monkeypatch.setattr(launching, "cluster_nodes", lambda: [Node(one, one, {}, {}) for one in cluster])
    assert meeting(placement_on(ranks)) == seen


def test_each_node_has_as_many_ranks_of_sglang():
    """Not where ``placement.strategy``, or a placement group that was given, has spread them otherwise."""
    for equal in (["there", "there"], ["here", "there"]):
        require_equal_shares(placement_on(equal))
    seats = [Seat(rank, rank, f"node{node}", f"10.0.0.{node}", 0) for rank, node in enumerate([0, 0, 0, 1])]
    with pytest.raises(LaunchError, match=r"placed 3 on node 10\.0\.0\.0, 1 on node 10\.0\.0\.1: the engine") as caught:
        require_equal_shares(Placement(SimpleNamespace(), tuple(seats), owned=True))
    assert (caught.value.code, caught.value.phase) == ("F13", "PLACE")


def test_ranks_are_told_of_their_nodes(specs):
    assert [(one.node, one.nodes) for one in specs(["a", "a", "b", "b"])] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert [(one.node, one.nodes) for one in specs(["a", "a"])] == [(0, 1), (0, 1)]


@pytest.mark.parametrize(
    ("nodes", "hosts"),
    [
        (["here", "here"], ["127.0.0.1", "127.0.0.1"]),
        (["there", "there"], ["10.0.0.0", "10.0.0.1"]),  # the driver connects from another node
        (["here", "there"], ["10.0.0.0", "10.0.0.1"]),
    ],
)
def test_ranks_listen_on_loopback_if_driver_and_ranks_share_a_node(specs, nodes, hosts):
    told = specs(nodes)
    assert [one.bind_host for one in told] == hosts
    together = len(set(nodes)) == 1
    assert {one.environment.get("GLOO_SOCKET_IFNAME") for one in told} == {"lo" if together else None}


class Preparing:
    """A group of which nothing is asked but what its nodes need."""

    def __init__(self, placement, session):
        self.placement, self.lost_nodes = placement, set()

    def start(self, specs, standby, stopped, prepare, preloaded):
        prepare({"here": object()})

    def close(self, deadline_s):
        return Teardown(2, 1)


def test_a_launch_that_fails_outlasts_what_it_has_begun(monkeypatch, specs):
    """What still called Ray when the session is left would start another one in its user's process."""
    begun, ended = threading.Event(), threading.Event()

    def prepare(agents, config, report, stopped, *_):
        begun.set()
        while not stopped():
            time.sleep(0.005)
        time.sleep(0.1)
        ended.set()

    def refuse(*_):
        assert begun.wait(5)
        raise LaunchError("model.load_format = runai finds no file", "F19", "PLACE")

    monkeypatch.setattr(launching, "place", lambda *_: placement_on(["here", "here"]))
    monkeypatch.setattr(launching, "RankGroup", Preparing)
    monkeypatch.setattr(kernels, "prepare", prepare)
    monkeypatch.setattr(launching, "require_loadable", refuse)
    config = LaunchConfig.default(["engine.kind=sglang", "engine.device=cpu"])
    with pytest.raises(LaunchError, match="finds no file"):
        launching.launch(launch_of(config, SHAPE), LaunchReport("x"))
    assert ended.is_set()
