from __future__ import annotations

import pytest
from raylaunch_actors.communicator.topology import (
    GpuPlace,
    in_words,
    sharing,
    speed_of_generation,
    unlinked,
    unreachable,
)

A = GpuPlace("a", ("a", "b"), ("a", "b"))
B = GpuPlace("b", ("b", "a"), ("b", "a"))


@pytest.mark.parametrize(
    ("places", "reach", "links"),
    [
        ([A, B], "", ""),
        ([A, A], "", ""),  # two ranks on one GPU
        ([A, GpuPlace("b", ("b",), ("a", "b"))], "rank 1's GPU cannot read the memory of rank 0's GPU", ""),
        ([GpuPlace("a", ("a", "b"), ("a",)), B], "", "rank 0's GPU has no NVLink to rank 1's GPU"),
        (
            [A, GpuPlace("b", ("a", "b"), ("b",), None, "no NVML")],
            "",
            "rank 1's GPU has no NVLink to rank 0's GPU (no NVML)",
        ),
        (
            [GpuPlace("a"), GpuPlace("a")],
            "rank 0's GPU cannot read the memory of rank 0's GPU",
            "rank 0's GPU has no NVLink to rank 0's GPU",
        ),
    ],
)
def test_the_first_pair_that_does_not_reach_each_other_is_named(places, reach, links):
    assert (unreachable(places), unlinked(places)) == (reach, links)


def test_ranks_that_share():
    assert sharing(["a", "b", "c"]) == ""
    assert sharing([("h", "a"), ("g", "a"), ("h", "a")]) == "ranks 0 and 2 share one GPU"


FAST = [GpuPlace(name, ("a", "b"), ("a", "b"), 450e9) for name in "ab"]


@pytest.mark.parametrize(
    ("places", "text"),
    [
        ([], "no other GPU"),
        ([GpuPlace("a", ("a",), ("a",))], "no other GPU"),
        (FAST[:1], "no other GPU; NVLink, 450 GB/s in each direction"),
        (FAST, "all read each other's memory; NVLink between all, 450 GB/s in each direction"),
        (
            [GpuPlace(name, (name,), (name,)) for name in "ab"],
            "GPU 0 cannot read the memory of GPU 1; GPU 0 has no NVLink to GPU 1",
        ),
    ],
)
def test_a_machine_in_words(places, text):
    assert in_words(places) == text


@pytest.mark.parametrize(("version", "speed"), [(0, 0), (1, 0), (2, 25_000), (6, 25_000), (7, 50_000), (8, 0)])
def test_speed_of_a_link_by_its_generation(version, speed):
    assert speed_of_generation(version) == speed
