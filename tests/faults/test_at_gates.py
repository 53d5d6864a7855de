"""Faults that are variables: what a rank is told of its node."""

from __future__ import annotations

import types
from typing import get_args

import pytest
from raylaunch_actors.faults import at_gates
from raylaunch_actors.gate import RankGate

from raylaunch import LaunchConfig
from raylaunch.config import faults
from raylaunch.errors import RankFault
from raylaunch.protocol import LaunchPlan


def provoke(action, rank):
    config = LaunchConfig.default().replace({"faults": [{"action": action, "rank": 1}]})
    gate = RankGate(rank, LaunchPlan(2))
    assert at_gates.provoke(types.SimpleNamespace(config=config, rank=rank, program="reference"), gate) is gate


@pytest.mark.parametrize(
    ("action", "rank", "seen"),
    [("reversed_gpus", 1, "2,1,0"), ("hidden_gpus", 1, "0"), ("hidden_gpus", 0, "0,1,2")],
)
def test_gpus_are_numbered_otherwise_on_one_rank(action, rank, seen, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    provoke(action, rank)
    assert at_gates.os.environ["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.parametrize("visible", ["", "0"])
def test_a_rank_without_other_gpus_says_so(visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(RankFault, match="no GPUs to number otherwise"):
        provoke("reversed_gpus", 1)


def test_every_action_that_may_be_asked_for_exists():
    from raylaunch_actors.sglang_engine import faults as sglang_faults

    places = {*at_gates.ACTIONS, *at_gates.ENVIRONMENTS, "other_version"}
    assert {*at_gates.INJECTIONS, *sglang_faults.INJECTIONS} | places == set(get_args(faults.FaultAction))
    assert set(faults.AT_A_GATE) == set(at_gates.ACTIONS)
    assert set(at_gates.INJECTIONS) - set(sglang_faults.INJECTIONS) == set(faults.OF_THE_REFERENCE_ENGINE)
    assert set(sglang_faults.INJECTIONS) <= set(at_gates.INJECTIONS)
    assert {*faults.AT_A_SHAPE, *faults.OF_GRAPHS} <= set(at_gates.INJECTIONS)
    assert set(faults.OF_GPUS) <= set(get_args(faults.FaultAction))
