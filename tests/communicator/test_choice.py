"""Which all-reduce is possible, which is taken, and what measured times decide: tables of cases."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raylaunch_actors.communicator.arena import ArenaHandle
from raylaunch_actors.communicator.choice import Option, choose, cpu_options, fastest, gpu_options, spread_out
from raylaunch_actors.communicator.sgl_kernel import GpuOffer
from raylaunch_actors.communicator.shared_memory import ShareOffer
from raylaunch_actors.communicator.topology import GpuPlace

from raylaunch.errors import RankFault
from raylaunch.protocol import Route

GOOD = ShareOffer(0, "host a", "x86_64", 4096, ArenaHandle(1, 3, 4096, "00"))
MIB = 1 << 20


def offers(*changes):
    return [dataclasses.replace(GOOD, rank=rank, **change) for rank, change in enumerate(changes)]


def gpus(count, *changes, links="all"):
    """Offers of ranks on a GPU each: all reach each other, over NVLink unless ``links`` is none."""
    names = tuple(f"gpu{rank}" for rank in range(count))
    made = []
    for rank in range(count):
        place = GpuPlace(names[rank], names, names if links == "all" else (names[rank],))
        made.append(GpuOffer(rank, "host a", place, 8 * MIB, b"s", b"b", nccl_host="host a"))
    return [dataclasses.replace(offer, **(dict(changes).get(offer.rank, {}))) for offer in made]


def sharing_one_gpu(**change):
    place = GpuPlace("gpu0", ("gpu0",), ("gpu0",))
    return gpus(2, (0, {"place": place}), (1, {"place": place, **change}))


@pytest.mark.parametrize(
    ("changes", "wanted", "nodes", "kind", "reason"),
    [
        ([{}, {}], "custom", ["n", "n"], "shared-memory", "2 ranks"),
        ([{}], "library", ["n"], "single", "one rank"),
        ([{}, {}], "library", ["n", "n"], "gloo", "asked for"),
        ([{}, {}], "custom", ["n", "m"], "gloo", "2 nodes"),
        ([{}, {"handle": None, "reason": "memory is full"}], "custom", ["n", "n"], "gloo", "rank 1.*memory is full"),
        ([{}, {"host": "host b"}], "custom", ["n", "n"], "gloo", "host a / host b"),
        ([{}, {"machine": "aarch64"}], "custom", ["n", "n"], "gloo", "aarch64"),
        ([{}, {"max_bytes": 8192}], "custom", ["n", "n"], "gloo", "4096 and 8192"),
    ],
)
def test_choice_on_cpus(changes, wanted, nodes, kind, reason):
    choice = choose(wanted, cpu_options(offers(*changes), nodes), len(nodes), largest=1 << 30, max_bytes=4096)
    assert (choice.kinds, choice.routes) == ((kind,), (Route(None, kind),))
    assert re.search(reason, choice.reason)


FAR = {"place": GpuPlace("gpu1", ("gpu1",), ("gpu1",))}


@pytest.mark.parametrize(
    ("made", "wanted", "routes", "reason"),
    [
        (gpus(2), "custom", [(None, "sgl_kernel")], "2 GPUs of one host, NVLink"),
        (gpus(2), "sgl_kernel", [(None, "sgl_kernel")], "2 GPUs"),
        (gpus(2, links="none"), "custom", [(None, "sgl_kernel")], "2 GPUs of one host$"),
        (gpus(4), "custom", [(None, "sgl_kernel")], "4 GPUs of one host, NVLink"),
        (gpus(4, links="none"), "custom", [(None, "nccl")], "NVLink between all: rank 0's GPU has no NVLink to rank 1"),
        (gpus(3), "custom", [(None, "nccl")], "2, 4, 6, 8 ranks, not with 3"),
        (gpus(2, (1, FAR)), "custom", [(None, "nccl")], "rank 1's GPU cannot read the memory of rank 0's GPU"),
        (gpus(2, (1, {"host": "b"})), "custom", [(None, "nccl")], "host a / b"),
        (gpus(2, (1, {"max_bytes": 4096})), "custom", [(None, "nccl")], "stage 8388608 and 4096 B"),
        (gpus(2, (1, {"staging": None, "reason": "no kernel"})), "custom", [(None, "nccl")], "rank 1 .*no kernel"),
        (gpus(2), "library", [(None, "nccl")], "asked for"),
        (gpus(2), "symmetric_memory", [(256 << 10, "symmetric-one-shot"), (None, "symmetric-two-shot")], "2 GPUs"),
        (gpus(4), "symmetric_memory", [(128 << 10, "symmetric-one-shot"), (None, "symmetric-two-shot")], "4 GPUs"),
        (gpus(8), "symmetric_memory", [(128 << 10, "symmetric-one-shot"), (None, "symmetric-two-shot")], "8 GPUs"),
        (sharing_one_gpu(), "custom", [(None, "sgl_kernel")], "ranks 0 and 1 share one GPU"),
        (sharing_one_gpu(nccl_host="elsewhere"), "library", [(None, "nccl")], "asked for"),
    ],
)
def test_choice_on_gpus(made, wanted, routes, reason):
    choice = choose(wanted, gpu_options(made, ["n"] * len(made)), len(made), largest=MIB, max_bytes=8 * MIB)
    assert choice.routes == tuple(Route(*route) for route in routes)
    assert choice.kinds == tuple(kind for _, kind in routes)
    assert re.search(reason, choice.reason)


def test_large_messages_go_to_nccl_or_are_split_where_there_is_none():
    def chosen(made):
        return choose("custom", gpu_options(made, ["n", "n"]), 2, largest=9 * MIB, max_bytes=8 * MIB)

    assert chosen(gpus(2)).routes == (Route(8 * MIB, "sgl_kernel"), Route(None, "nccl"))
    alone = chosen(sharing_one_gpu())
    assert alone.routes == (Route(None, "sgl_kernel"),)
    assert "larger messages in parts, as nccl is impossible: ranks 0 and 1 share one GPU" in alone.reason


@pytest.mark.parametrize(("world", "kib"), [(2, 256), (4, 128)])
def test_two_shots_are_not_opened_where_every_message_is_small(world, kib):
    def chosen(largest):
        return choose("symmetric_memory", gpu_options(gpus(world), ["n"] * world), world, largest, 8 * MIB).kinds

    both = ("symmetric-one-shot", "symmetric-two-shot")
    assert [chosen(nbytes) for nbytes in (512, kib << 10)] == [both[:1]] * 2
    assert [chosen(nbytes) for nbytes in ((kib << 10) + 1, 0)] == [both] * 2  # 0: not known, as before a launch


@pytest.mark.parametrize(
    ("made", "wanted", "code", "said"),
    [
        (sharing_one_gpu(signals=None, reason="expandable"), "custom", "F16", "expandable.*nccl.*share one GPU"),
        (sharing_one_gpu(), "library", "F18", "which NCCL does not take"),
        (sharing_one_gpu(signals=None, reason="not asked for"), "library", "F18", "which NCCL does not take"),
        (sharing_one_gpu(), "symmetric_memory", "F18", "is impossible here: .*share one GPU"),
        (sharing_one_gpu(signals=None, reason="not asked for"), "symmetric_memory", "F18", "impossible.*share one GPU"),
        (gpus(2, (0, {"symmetric": "old torch"})), "symmetric_memory", "F18", "impossible here: .*old torch"),
        (
            gpus(2, (1, FAR)),
            "sgl_kernel",
            "F18",
            "rank 1's GPU cannot read.*custom would take another",
        ),
        (gpus(2, (1, {"staging": None, "reason": "no kernel"})), "sgl_kernel", "F16", "impossible here: .*no kernel"),
        (sharing_one_gpu(signals=None, reason="full"), "auto", "F16", "no all-reduce is possible.*full"),
    ],
)
def test_f16_f18_where_nothing_is_possible_or_not_what_is_named(made, wanted, code, said):
    with pytest.raises(RankFault, match=said) as caught:
        choose(wanted, gpu_options(made, ["n", "n"]), 2)
    assert caught.value.code == code


def test_auto_takes_all_that_is_possible():
    assert choose("auto", cpu_options(offers({}, {}), ["n", "n"]), 2).kinds == ("shared-memory", "gloo")
    assert choose("auto", cpu_options(offers({}, {}), ["n", "m"]), 2).kinds == ("gloo",)
    assert choose("auto", gpu_options(sharing_one_gpu(), ["n", "n"]), 2).kinds == ("sgl_kernel",)
    assert choose("auto", (Option("single", "one rank"),), 1).routes == (Route(None, "single"),)


@given(st.data())
def test_every_rank_decides_alike_whatever_the_order(data):
    change = st.sampled_from([{}, {}, {}, {"host": "host b"}, {"handle": None}, {"machine": "arm64"}, {"max_bytes": 1}])
    world = data.draw(st.integers(2, 5))
    made = offers(*data.draw(st.lists(change, min_size=world, max_size=world)))
    nodes = ["n"] * world
    assert cpu_options(made, nodes) == cpu_options(data.draw(st.permutations(made)), nodes)


def test_offers_that_are_not_one_per_rank():
    with pytest.raises(ValueError, match="one of each"):
        cpu_options(offers({}), ["n", "n"])
    with pytest.raises(ValueError, match="one of each"):
        gpu_options(gpus(1), ["n", "n"])


def test_the_slowest_rank_decides_and_neighbours_are_merged():
    ranks = [
        {"a": {8: 1.0, 16: 2.0, 32: 9.0, 64: 5.0}, "b": {8: 3.0, 16: 2.0, 32: 3.0, 64: 5.5}},
        {"a": {8: 2.0, 16: 2.0, 32: 1.0, 64: 5.0}, "b": {8: 1.0, 16: 2.0, 32: 3.0, 64: 1.0}},
    ]
    routes, measured = fastest(ranks, ("a", "b"))
    assert [one.chosen for one in measured] == ["a", "a", "b", "a"]  # 16: equal, the earlier kind
    assert measured[2].microseconds == {"a": 9.0, "b": 3.0}
    assert routes == (Route(16, "a"), Route(32, "b"), Route(None, "a"))
    assert fastest(ranks[::-1], ("a", "b"))[0] == routes
    with pytest.raises(ValueError, match="nothing was measured"):
        fastest(ranks, ())


def test_sizes_are_spread_out():
    assert spread_out([3, 1, 2, 2], 12) == (1, 2, 3)
    assert spread_out(range(1, 101), 4) == (1, 34, 67, 100)
