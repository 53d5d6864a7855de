"""``raylaunch doctor``: right about this machine, and about what cannot be launched."""

from __future__ import annotations

import json
import platform

import pytest

from raylaunch.commands import examine
from raylaunch.sglang.source import TESTED
from tests.cli.runner import run


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
        ("placement.placement_group=mine", "placement", "the placement group 'mine'"),
    ],
)
def test_choices_are_told_with_their_reason(setting: str, what: str, said: str) -> None:
    assert said in json.loads(run("doctor", "--json", "--set", setting).stdout)["launch"][what]


def test_memory_that_spares_would_not_find_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(examine.IMPORTED_BYTES, "reference", 1 << 60)
    ran = run("doctor", "--set", "recovery.standby=2")
    assert ran.code == 1
    said = "recovery.standby = 2 takes 4294967296.0 GiB of memory or more, and "
    assert said in ran.stdout.partition("\nproblems\n")[2]
