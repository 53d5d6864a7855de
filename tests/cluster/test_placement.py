"""Who sits where, and what is said when it cannot be; the parts that need no cluster."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raylaunch_actors.rank import RankProcess

from raylaunch.cluster import placement
from raylaunch.cluster.placement import (
    BundleRequest,
    Node,
    choose_device,
    gpus_seen,
    impossible,
    lacks_gpus,
    seats,
    unsatisfied,
    usable,
)
from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError, LaunchError
from raylaunch.resolved import request_for


def config(**sections):
    return LaunchConfig.from_dict({"model": {"path": "m"}, **sections})


def node(name, total, free=None):
    return Node(name * 8, f"10.0.0.{name}", total, total if free is None else free)


ONE = {"CPU": 1.0}
GPU = {"CPU": 1.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("ranks", "nodes", "device", "placement", "bundles", "strategy"),
    [
        (1, 1, "cpu", {}, (ONE,), "STRICT_PACK"),
        (2, 1, "cuda", {}, (GPU, GPU), "STRICT_PACK"),
        (2, 1, "cpu", {"strategy": "SPREAD"}, (ONE, ONE), "SPREAD"),
        (4, 2, "cuda", {}, ({"CPU": 2.0, "GPU": 2.0},) * 2, "STRICT_SPREAD"),
        (4, 2, "cpu", {"strategy": "PACK"}, ({"CPU": 2.0},) * 2, "PACK"),
        (2, 1, "cuda", {"resources_per_rank": {"GPU": 0.5}}, ({"GPU": 0.5},) * 2, "STRICT_PACK"),
    ],
)
def test_what_is_asked_of_ray(ranks, nodes, device, placement, bundles, strategy):
    made = config(parallel={"tensor_parallel_size": ranks, "nodes": nodes}, placement=placement)
    assert request_for(made, device) == BundleRequest(bundles, strategy)
    assert request_for(made, device).cpus == (0.0 if placement.get("resources_per_rank") else ranks)


@pytest.mark.parametrize(
    ("wanted", "gpus", "device"),
    [("auto", 2, "cuda"), ("auto", 1, "cpu"), ("auto", 0, "cpu"), ("cpu", 2, "cpu"), ("cuda", 0, "cuda")],
)
def test_device(wanted, gpus, device):
    made = config(parallel={"tensor_parallel_size": 2}, engine={"device": wanted})
    assert choose_device(made, [node("1", {"CPU": 4, "GPU": gpus})]) == device


@pytest.mark.parametrize(
    ("resources", "gpus", "device"),
    [({"GPU": 0.5}, 1, "cuda"), ({"GPU": 1}, 0, "cuda"), ({"CPU": 2}, 8, "cpu")],
)
def test_the_resources_asked_for_decide_the_device(resources, gpus, device):
    made = config(parallel={"tensor_parallel_size": 2}, placement={"resources_per_rank": resources})
    assert choose_device(made, [node("1", {"CPU": 4, "GPU": gpus})]) == device


def test_ranks_on_gpus_must_ask_for_one():
    made = config(engine={"device": "cuda"}, placement={"resources_per_rank": {"CPU": 1}})
    with pytest.raises(ConfigError, match=r"placement.resources_per_rank = \{'CPU': 1.0\}.*add GPU: 1"):
        request_for(made, "cuda")


@pytest.mark.parametrize(
    ("ranks", "seen"),
    [
        ([("a", ()), ("a", ())], [None, None]),
        ([("a", ("2",)), ("a", ("0",))], [("2,0", 0), ("2,0", 1)]),
        ([("a", ("3",)), ("b", ("0",))], [("3", 0), ("0", 0)]),
        ([("a", ("0",)), ("a", ("0",))], [("0", 0), ("0", 0)]),  # sharing a GPU
        ([("a", ("0",)), ("a", ("1",)), ("a", ("0",))], [("0,1", 0), ("0,1", 1), ("0,1", 0)]),  # as Ray packs halves
        ([("a", ("0", "1")), ("a", ("2", "3"))], [("0,1,2,3", 0), ("0,1,2,3", 2)]),
        ([("a", ("GPU-f00",)), ("a", ("GPU-ba7",))], [("GPU-f00,GPU-ba7", 0), ("GPU-f00,GPU-ba7", 1)]),
    ],
)
def test_f09_ranks_see_the_gpus_of_their_group_and_know_their_own(ranks, seen):
    assert gpus_seen(ranks) == seen


@pytest.mark.parametrize(
    ("bundles", "strategy", "why"),
    [
        ((ONE, ONE), "STRICT_PACK", ""),
        ((GPU,), "PACK", "no node has 1 CPU, 1 GPU"),
        ((ONE,) * 3, "STRICT_PACK", "no single node has 3 CPU"),
        ((ONE,) * 3, "PACK", ""),
        ((ONE,) * 3, "STRICT_SPREAD", "3 nodes are asked for and 2 can hold a bundle"),
        ((ONE,) * 2, "STRICT_SPREAD", ""),
        (({"CPU": 0.05},) * 40, "STRICT_PACK", ""),  # whose sum is a little above 2
    ],
)
def test_what_can_never_be(bundles, strategy, why):
    nodes = [node("1", {"CPU": 2}, {}), node("2", {"CPU": 2}, {"CPU": 1})]
    assert impossible(BundleRequest(bundles, strategy), nodes) == why


def test_nothing_is_possible_without_nodes():
    assert impossible(BundleRequest((ONE,), "PACK"), []) == "no node has 1 CPU"


def test_f13_says_what_was_asked_beside_what_there_is():
    nodes = [node("1", {"CPU": 4, "GPU": 2}, {"CPU": 4}), node("2", {"CPU": 8, "memory": 1e9}, {"CPU": 0.5})]
    request = BundleRequest((GPU, GPU, ONE), "PACK")
    assert unsatisfied(request, nodes, ["other (created: 2 GPU)"], "placement not ready in 3 s").splitlines() == [
        "placement not ready in 3 s; asked PACK 2 x [1 CPU, 1 GPU] + 1 x [1 CPU]",
        "  the cluster has",
        "    node 10.0.0.1 (11111111): CPU 4 free of 4, GPU 0 free of 2",
        "    node 10.0.0.2 (22222222): CPU 0.5 free of 8, GPU 0 free of 0",
        "  held by placement groups: other (created: 2 GPU)",
    ]


@pytest.mark.parametrize(("gpus", "device"), [((), "cpu"), (("1",), "gpu 1"), (("0", "1"), "gpu 0, 1")])
def test_the_device_of_a_rank_in_words(gpus, device):
    assert RankProcess(0, 1, "node", "10.0.0.4", (), gpus).device == device


@st.composite
def bundles(draw):
    """Bundles on nodes in any order, and a world that they can hold in equal shares."""
    nodes = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8))
    made = [(index, name, f"10.0.0.{name}") for index, name in enumerate(nodes)]
    world = draw(st.one_of(st.integers(1, len(made)), st.sampled_from([len(made) * k for k in (1, 2, 4)])))
    return draw(st.permutations(made)), world


@given(bundles())
def test_ranks_of_one_node_are_contiguous_and_counted_from_zero(drawn):
    given_bundles, world = drawn
    placed = seats(given_bundles, world)
    assert [seat.rank for seat in placed] == list(range(world))
    order = [seat.node_id for seat in placed]
    assert len(dict.fromkeys(order)) == 1 + sum(a != b for a, b in pairwise(order))
    for name in set(order):
        here = [seat for seat in placed if seat.node_id == name]
        assert [seat.local_rank for seat in here] == list(range(len(here)))
    where = {index: (name, address) for index, name, address in given_bundles}
    assert all(where[seat.bundle] == (seat.node_id, seat.address) for seat in placed)
    shares = [sum(seat.bundle == index for seat in placed) for index in where]
    assert set(shares) - {0} == {max(1, world // len(where))}
    assert placed == seats(sorted(given_bundles), world), "Ray's order of the bundles must not matter"


def test_a_group_with_more_bundles_than_ranks_is_not_spread_without_need():
    given_bundles = [(0, "a", "a"), (1, "b", "b"), (2, "b", "b")]
    assert [(seat.bundle, seat.local_rank) for seat in seats(given_bundles, 2)] == [(1, 0), (2, 1)]


@pytest.mark.parametrize(
    ("present", "avoid", "left"),
    [("123", "", "123"), ("123", "2", "13"), ("123", "9", "123"), ("12", "2", "12"), ("123", "23", "123")],
)
def test_lost_nodes_are_avoided_where_others_can_hold_the_group(present, avoid, left):
    request = BundleRequest((ONE, ONE), "STRICT_SPREAD")
    nodes = [node(name, {"CPU": 4}) for name in present]
    assert usable(request, nodes, {name * 8 for name in avoid}) == [node(name, {"CPU": 4}) for name in left]


def test_a_placement_that_is_wanted_no_more_is_not_waited_for():
    pending = SimpleNamespace(wait=lambda seconds: False)
    with pytest.raises(LaunchError, match="shut down"):
        placement._ready(pending, 3600.0, lambda: True)
    assert not placement._ready(pending, 0.01, lambda: False)


@pytest.mark.parametrize(
    ("bundles", "ranks", "each", "said"),
    [
        ((GPU, GPU), 2, 1.0, ""),
        (({"GPU": 2.0},), 2, 1.0, ""),
        (({"GPU": 0.3},), 3, 0.1, ""),  # their sum is a little more
        ((ONE, GPU), 2, 1.0, "bundle 0 has 1 CPU, asked 1 x [1 GPU]"),
        ((ONE, GPU), 2, 0.0, ""),
        ((GPU,), 2, 1.0, "bundle 0 has 1 CPU, 1 GPU, asked 2 x [1 GPU]"),
        (({"GPU": 0.5},) * 2, 2, 1.0, "bundle 0 has 0.5 GPU, asked 1 x [1 GPU]"),
    ],
)
def test_a_given_group_has_a_gpu_for_every_rank(bundles, ranks, each, said):
    placed = seats([(index, "a", "10.0.0.1") for index in range(len(bundles))], ranks)
    assert lacks_gpus(bundles, placed, each) == said
