"""What each rank is told of its launch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

from raylaunch import LaunchConfig
from raylaunch.cluster.placement import Placement, Seat
from raylaunch.group.launch import specs_of


@pytest.fixture
def specs(monkeypatch):
    """Specs of ranks on nodes of these names, for a driver on ``here``."""
    driver = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: driver)

    def made(nodes, *settings):
        seats = [Seat(rank, rank, node, f"10.0.0.{rank}", 0) for rank, node in enumerate(nodes)]
        placement = Placement(SimpleNamespace(), tuple(seats), owned=True)
        return specs_of(LaunchConfig.default(settings), placement, "tiny-1", "cpu", "reference")

    return made


def test_ranks_are_told_no_api_key(specs):
    told = specs(["here", "here"], "serve.api_key=sesame", "engine.threads=3")
    assert [one.config.serve.api_key for one in told] == [None, None]
    assert [one.config.engine.threads for one in told] == [3, 3]


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
    assert {one.environment.get("GLOO_SOCKET_IFNAME") for one in told} == {"lo" if hosts[0] == "127.0.0.1" else None}
