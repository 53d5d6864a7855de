from __future__ import annotations

import pytest

from actors.communicator.topology import GpuPlace, sharing, unlinked, unreachable

A = GpuPlace("a", ("a", "b"), ("a", "b"))
B = GpuPlace("b", ("b", "a"), ("b", "a"))


@pytest.mark.parametrize(
    ("places", "reach", "links"),
    [
        ([A, B], "", ""),
        ([A, A], "", ""),  # two ranks on one GPU
        ([A, GpuPlace("b", ("b",), ("a", "b"))], "rank 1's GPU cannot read the memory of rank 0's", ""),
        ([GpuPlace("a", ("a", "b"), ("a",)), B], "", "rank 0's GPU has no NVLink to rank 1's"),
        (
            [A, GpuPlace("b", ("a", "b"), ("b",), None, "no NVML")],
            "",
            "rank 1's GPU has no NVLink to rank 0's (no NVML)",
        ),
        (
            [GpuPlace("a"), GpuPlace("a")],
            "rank 0's GPU cannot read the memory of rank 0's",
            "rank 0's GPU has no NVLink to rank 0's",
        ),
    ],
)
def test_the_first_pair_that_does_not_reach_each_other_is_named(places, reach, links):
    assert (unreachable(places), unlinked(places)) == (reach, links)


def test_ranks_that_share():
    assert sharing(["a", "b", "c"]) == ""
    assert sharing([("h", "a"), ("g", "a"), ("h", "a")]) == "ranks 0 and 2 share one GPU"
