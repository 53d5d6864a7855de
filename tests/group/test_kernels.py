"""Which compiled kernels go from which node to which, and which launches need the same ones."""

from __future__ import annotations

import pytest
from raylaunch_actors.kernel_cache import Holding

from raylaunch.config import LaunchConfig
from raylaunch.group.kernels import Copy, copies, launch_mark, parts

A, B, AB = {"a": 10}, {"b": 20}, {"a": 10, "b": 20}


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ({}, []),
        ({"1": ("k", AB)}, []),
        ({"1": ("k", AB), "2": ("k", AB)}, []),
        ({"1": ("k", AB), "2": ("k", {})}, [Copy("1", "2", AB)]),
        ({"1": ("k", {}), "2": ("k", AB), "3": ("k", A)}, [Copy("2", "1", AB), Copy("2", "3", B)]),
        ({"1": ("k", A), "2": ("k", B)}, [Copy("2", "1", B)]),
        ({"1": ("k", AB), "2": ("other", {})}, []),
        ({"1": ("k", AB), "2": ("other", A), "3": ("other", {})}, [Copy("2", "3", A)]),
    ],
)
def test_copies_go_from_the_fullest_node_of_a_kind(
    nodes: dict[str, tuple[str, dict[str, int]]], wanted: list[Copy]
) -> None:
    held = {node: Holding(*one) for node, one in nodes.items()}
    assert copies(held, nodes) == wanted
    assert copies(held, ["3", "9"]) == [one for one in wanted if one.target == "3"]


@pytest.mark.parametrize(
    ("files", "most", "made"),
    [
        ({}, 100, []),
        ({"b": 5, "a": 5}, 100, [["a", "b"]]),
        ({"a": 6, "b": 6, "c": 4}, 100, [["a"], ["b", "c"]]),
        ({"a.json": 1, "z.so": 1}, 100, [["z.so", "a.json"]]),
        ({"a": 11, "b": 1}, 100, [["b"]]),
        ({"a": 6, "b": 6, "c": 4}, 10, [["a", "c"]]),
    ],
)
def test_parts_are_bounded_and_in_order(files: dict[str, int], most: int, made: list[list[str]]) -> None:
    assert parts(files, most, 10) == made


def test_launches_that_need_the_same_kernels() -> None:
    config = LaunchConfig.default()
    assert len(launch_mark(config)) == 16
    same = {"name": "other", "serve.port": 5, "recovery.rebuilds": 1, "placement.address": "auto"}
    assert launch_mark(config.replace(same)) == launch_mark(config)
    for key, value in {"parallel.tensor_parallel_size": 4, "capture.enabled": False, "model.dtype": "bfloat16"}.items():
        assert launch_mark(config.replace({key: value})) != launch_mark(config), key
