"""Which spares there are to be, and which become which ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raylaunch.group.spares import Spare, chosen, dealt, missing, pause_after

SAME = {"program": "noop", "device": "cpu", "environment": {"A": "1"}, "driver_files": ("", ""), "config": "c"}


def spec(rank: int = 0, **other: Any) -> Any:
    return SimpleNamespace(rank=rank, **{**SAME, **other})


def spare(node: str, ready: bool = True, visible: str = "", **other: Any) -> Spare:
    return Spare(spec(**other), None, node_id=node, visible=visible, nbytes=int(ready))


@pytest.mark.parametrize(
    ("ranks", "spares", "per_rank", "wanted"),
    [
        ("", "", 1, []),
        ("aa", "", 0, []),
        ("aa", "", 1, [0, 1]),
        ("aa", "a", 1, [1]),
        ("aa", "aa", 1, []),
        ("aa", "aaa", 1, []),
        ("aa", "", 2, [0, 1, 0, 1]),
        ("aabb", "ab", 1, [1, 3]),
        ("aabb", "bb", 1, [0, 1]),
        ("ab", "cc", 1, [0, 1]),  # of another node, which is none of the group's
    ],
)
def test_each_node_has_as_many_as_it_has_ranks(ranks: str, spares: str, per_rank: int, wanted: list[int]) -> None:
    assert missing(dict(enumerate(ranks)), spares, per_rank) == wanted


@pytest.mark.parametrize(
    ("nodes", "spares", "taken"),
    [
        ("aa", [spare("a"), spare("a")], {0: 0, 1: 1}),
        ("aa", [spare("a")], {0: 0}),
        ("aa", [spare("b"), spare("a")], {0: 1}),
        ("ab", [spare("b"), spare("a")], {0: 1, 1: 0}),
        ("a", [spare("a", ready=False), spare("a")], {0: 1}),
        ("a", [spare("a", ready=False)], {0: 0}),
        ("a", [spare("a", environment={"A": "2"}), spare("a", environment={}), spare("a")], {0: 2}),
        ("a", [spare("a", config="d"), spare("a", device="cuda"), spare("a", program="sglang")], {}),
        ("a", [spare("a", driver_files=("1", ""))], {}),
        ("a", [spare("a", visible="0,1")], {}),
        ("a", [], {}),
    ],
)
def test_a_rank_gets_a_spare_of_its_node_and_environment(
    nodes: str, spares: list[Spare], taken: dict[int, int]
) -> None:
    found = chosen([spec(rank) for rank in range(len(nodes))], list(nodes), {}, spares)
    assert found == {rank: spares[number] for rank, number in taken.items()}


@pytest.mark.parametrize(("visible", "fits"), [("0,1", True), ("1,0", False), ("2,3", False), ("", False)])
def test_cuda_has_been_shown_the_gpus_that_the_group_got(visible: str, fits: bool) -> None:
    found = chosen([spec(device="cuda")], ["a"], {"a": "0,1"}, [spare("a", device="cuda", visible=visible)])
    assert bool(found) == fits


def test_gpus_are_dealt_in_the_order_of_their_ids_on_each_node() -> None:
    held = {0: ("10",), 1: ("9",), 2: ("1",), 3: ("0",)}
    assert dealt(held, "aabb") == {0: ("9",), 1: ("10",), 2: ("0",), 3: ("1",)}
    assert dealt({1: ("1",), 3: ("0",)}, "abab") == {1: ("0",), 3: ("1",)}
    assert dealt({0: ("0",), 1: ("0",)}, "aa") == {0: ("0",), 1: ("0",)}, "ranks that share one"


def test_what_dies_again_and_again_is_made_ever_more_rarely() -> None:
    assert [pause_after(deaths) for deaths in (1, 2, 3, 6, 7, 1000)] == [1, 2, 4, 32, 60, 60]
