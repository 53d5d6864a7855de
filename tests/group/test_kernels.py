"""Which compiled kernels go from which node to which, and which launches need the same ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from raylaunch_actors.kernel_cache import Holding

from raylaunch.config import LaunchConfig
from raylaunch.errors import LaunchError
from raylaunch.group import kernels, remote
from raylaunch.group.kernels import Copy, copies, launch_mark, parts
from raylaunch.report import LaunchReport

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


class Agent:
    """Says nothing."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *_: object())


@pytest.mark.parametrize("in_session", [True, False])
def test_agents_elsewhere_are_ended_unless_the_session_has(monkeypatch: pytest.MonkeyPatch, in_session: bool) -> None:
    """``ray.kill`` would start another session."""
    guest, killed = Agent(), list[Any]()
    silent = SimpleNamespace(wait=lambda calls, num_returns, timeout: ([], calls))
    monkeypatch.setattr(kernels, "ray", silent)
    monkeypatch.setattr(kernels, "ANSWER_S", 1e-9)
    monkeypatch.setattr(kernels, "cluster_nodes", lambda: [SimpleNamespace(node_id=one) for one in ("here", "there")])
    monkeypatch.setattr(kernels, "_copy", lambda *_: (_ for _ in ()).throw(LaunchError("shut down")))
    monkeypatch.setattr(remote, "agent_on", lambda _: guest)
    monkeypatch.setattr(kernels, "kill", killed.append)
    with pytest.raises(LaunchError, match="shut down"):
        kernels.prepare({"here": Agent()}, LaunchConfig.default(), LaunchReport("x"), lambda: False, lambda: in_session)
    assert killed == ([guest] if in_session else [])


def test_another_launch_that_hangs_is_waited_for_once_and_not_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    now, given = [0.0], list[float]()

    def agent(node: str) -> Any:
        def begin(root: str, mark: str, group: str, patience_s: float) -> tuple[str, str, float]:
            given.append(patience_s)
            return "begin", node, patience_s

        built = SimpleNamespace(remote=lambda root, mark: ("built", node, 0.0))
        return SimpleNamespace(built=built, begin_building=SimpleNamespace(remote=begin))

    def get(call: tuple[str, str, float]) -> float:
        now[0] += call[2]  # all that it may wait
        return call[2]

    monkeypatch.setattr(kernels, "ray", SimpleNamespace(wait=lambda calls, **_: (calls, []), get=get))
    monkeypatch.setattr(kernels, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(kernels, "_share", lambda *_: None)
    report = LaunchReport("x")
    kernels.prepare({node: agent(node) for node in "abcd"}, LaunchConfig.default(), report, lambda: False)
    assert given == [kernels.BUILD_S, 0.0, 0.0, 0.0]
    assert report.kernels == "waited 300 s for another launch that builds kernels"
