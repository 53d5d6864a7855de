from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.communicator.arena import ArenaHandle
from actors.communicator.choice import choose
from actors.communicator.shared_memory import ShareOffer

GOOD = ShareOffer(0, "host a", "x86_64", 4096, ArenaHandle(1, 3, 4096, "00"))


def offers(*changes):
    return [dataclasses.replace(GOOD, rank=rank, **change) for rank, change in enumerate(changes)]


@pytest.mark.parametrize(
    ("changes", "enabled", "nodes", "kind", "reason"),
    [
        ([{}, {}], True, ["n", "n"], "shared-memory", "2 ranks"),
        ([{}], False, ["n"], "single", "one rank"),
        ([{}, {}], False, ["n", "n"], "gloo", "switched off"),
        ([{}, {}], True, ["n", "m"], "gloo", "2 nodes"),
        (
            [{}, {"handle": None, "reason": "memory is full"}],
            True,
            ["n", "n"],
            "gloo",
            "rank 1.*memory is full",
        ),
        ([{}, {"host": "host b"}], True, ["n", "n"], "gloo", "host a / host b"),
        ([{}, {"machine": "aarch64"}], True, ["n", "n"], "gloo", "aarch64"),
        ([{}, {"max_bytes": 8192}], True, ["n", "n"], "gloo", "4096 and 8192"),
    ],
)
def test_choice(changes, enabled, nodes, kind, reason):
    import re

    choice = choose(offers(*changes), enabled, len(changes), nodes)
    assert choice.kind == kind
    assert re.search(reason, choice.reason)


@given(st.data())
def test_every_rank_decides_alike_whatever_the_order(data):
    change = st.sampled_from([{}, {}, {}, {"host": "host b"}, {"handle": None}, {"machine": "arm64"}, {"max_bytes": 1}])
    world = data.draw(st.integers(2, 5))
    made = offers(*data.draw(st.lists(change, min_size=world, max_size=world)))
    nodes = ["n"] * world
    assert choose(made, True, world, nodes) == choose(data.draw(st.permutations(made)), True, world, nodes)


def test_offers_that_are_not_one_per_rank():
    with pytest.raises(ValueError, match="one of each"):
        choose(offers({}), True, 2, ["n", "n"])
