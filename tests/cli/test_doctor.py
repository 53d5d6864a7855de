"""``raylaunch doctor``: right about this machine, and about what cannot be launched."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest

from raylaunch.cluster.placement import Node
from raylaunch.commands import examine as examination
from raylaunch.commands.doctor import show
from raylaunch.commands.examine import examine, other_versions
from raylaunch.config import LaunchConfig, shipped_configs
from raylaunch.protocol.rules.common import human_bytes
from raylaunch.sglang.source import TESTED
from raylaunch.terminal.machine import describe_machine, visible
from tests.cli.runner import run

MODEL = shipped_configs() / "models" / "tiny-adder"
WEIGHTS = (MODEL / "model.safetensors").stat().st_size


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_the_default_can_be_launched_here() -> None:
    ran = run("doctor", "--json")
    found = json.loads(ran.stdout)
    assert (ran.code, found["problems"]) == (0, [])
    assert found["machine"]["python"] == platform.python_version()
    assert found["machine"]["packages"]["ray"]
    assert found["launch"]["engine"] == "reference on cpu (engine.device)"
    assert found["launch"]["placement"] == "2 ranks, STRICT_PACK 2 x [1 CPU]"
    assert "(2 ranks on one host)" in found["launch"]["all-reduce"] or platform.machine() != "x86_64"
    assert found["launch"]["barriers"].startswith("23,")
    assert " and ".join(TESTED) in found["launch"]["sglang"]


def test_text_for_people() -> None:
    ran = run("doctor")
    assert ran.code == 0
    sections = [line for line in ran.stdout.splitlines() if not line.startswith(" ")]
    assert sections == ["machine", "packages", "cluster", "launch of tiny", "problems"]
    assert ran.stdout.endswith("problems\n  none\n")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("parallel.tensor_parallel_size=3", "must divide the model's num_attention_heads = 8"),
        ("model.path=/no/such/model", "no such folder"),
        ("placement.resources_per_rank={CPU: 1, unobtainium: 1}", "placement: no node has 1 CPU, 1 unobtainium"),
        (
            "placement.placement_group=mine",
            "placement.placement_group = 'mine': a private cluster has no placement groups",
        ),
        ("placement.address=127.0.0.1:1", "no Ray cluster at '127.0.0.1:1'"),
    ],
)
def test_what_makes_a_launch_impossible_is_listed(setting: str, said: str) -> None:
    ran = run("doctor", "--set", setting)
    assert ran.code == 1
    assert said in ran.stdout.partition("\nproblems\n")[2]


@pytest.mark.parametrize(
    ("address", "code", "said"),
    [
        ("local", 0, "\ncluster\n  none given "),
        (
            "ray://head:10001",
            1,
            "\nproblems\n  RAY_ADDRESS = 'ray://head:10001': is of Ray Client, which is not supported",
        ),
    ],
)
def test_addresses_of_no_cluster(address: str, code: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    ran = run("doctor")
    assert (ran.code, said in ran.stdout) == (code, True), ran.stdout


@pytest.mark.parametrize(
    ("setting", "what", "said"),
    [
        ("communicator=library", "all-reduce", "gloo (asked for by communicator.kind"),
        ("parallel.tensor_parallel_size=1", "all-reduce", "single (one rank)"),
        ("parallel.nodes=2", "all-reduce", "gloo (the group spans 2 nodes)"),
        ("capture.enabled=false", "shapes", "eager, nothing is captured"),
        ("recovery.standby=1", "standby", "2 ranks, at least 400.0 MiB of memory each"),
        ("recovery.keep_weights=true", "kept weights", f"{human_bytes(WEIGHTS)} of memory on a node"),
        ("placement.placement_group=mine", "placement", "the placement group 'mine'"),
    ],
)
def test_choices_are_told_with_their_reason(setting: str, what: str, said: str) -> None:
    assert said in json.loads(run("doctor", "--json", "--set", setting).stdout)["launch"][what]


def machine(**more: Any) -> dict[str, Any]:
    return {**describe_machine(), **more}


GPUS = {"gpus": [{"name": "H100", "memory": "80.0 GiB", "driver": "1"}], "gpu_links": []}
NODES = [Node("head", "10.0.0.1", {"CPU": 0.0}, {}), Node("a", "10.0.0.2", {"CPU": 8.0, "GPU": 2.0}, {})]


def test_on_a_head_the_nodes_say_what_they_have() -> None:
    """Not what the head lacks."""
    config = LaunchConfig.default(["engine.device=cuda", "communicator=library"])
    others = {"10.0.0.2": machine(**GPUS)}
    here = machine(gpus=[], gpu_links=[])
    plan = examine(config, here, NODES, others)
    assert plan.problems == []
    text = "\n".join(show(here, "10.0.0.1:6379", NODES, "x", plan, others))
    of_node = text.partition("machine of node 10.0.0.2, and of those like it\n")[2]
    assert "H100, 80.0 GiB" in of_node.partition("launch of x")[0]


def test_a_node_that_cannot_be_asked_or_has_another_sglang_is_a_problem() -> None:
    here, packages = describe_machine(), describe_machine()["packages"]
    other = machine(packages={**packages, "sglang": "0.0.1"})
    assert other_versions(here, {"10.0.0.2": other}) == [
        f"node 10.0.0.2 has sglang 0.0.1, and {packages['sglang'] or 'none'} is here"
    ]
    assert other_versions(here, {"10.0.0.2": here}) == []
    plan = examine(LaunchConfig.default(), here, NODES, {"10.0.0.2": "does not say what it has: no raylaunch"})
    assert "node 10.0.0.2 does not say what it has: no raylaunch" in plan.problems


def test_memory_that_weights_would_not_find_is_a_problem(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path, dirs_exist_ok=True)
    os.truncate(tmp_path / "model.safetensors", 4 << 40)  # takes nothing of the disk
    ran = run("doctor", "--set", f"model.path={tmp_path}", "--set", "recovery.keep_weights=true")
    assert ran.code == 1
    assert "recovery.keep_weights takes 4096.0 GiB of memory, and " in ran.stdout.partition("\nproblems\n")[2]


def test_memory_that_spares_would_not_find_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(examination.IMPORTED_BYTES, "reference", 1 << 60)
    ran = run("doctor", "--set", "recovery.standby=2")
    assert ran.code == 1
    said = "recovery.standby = 2 takes 4294967296.0 GiB of memory or more, and "
    assert said in ran.stdout.partition("\nproblems\n")[2]


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (None, "abc"), ("", ""), ("NoDevFiles", ""), ("-1", ""), ("0", "a"), ("2,0", "ca"), ("0, 1", "ab"), ("7", ""),
        ("0,-1,1", "a"), ("GPU-8a,GPU-9b", "ab"),
    ],
)  # fmt: skip
def test_gpus_that_the_environment_hides_are_none_of_ours(chosen: str | None, left: str) -> None:
    found = [{"name": name} for name in "abc"]
    assert "".join(gpu["name"] for gpu in visible(found, chosen)) == left
