"""What a rank says of the all-reduce that SGLang has settled on, or of why there is none (F16, F17, F18)."""

from __future__ import annotations

import contextlib
import logging
import sys
import types

import pytest
import torch
from raylaunch_actors.sglang_engine import communicators, seams, versions

from raylaunch import LaunchConfig
from raylaunch.errors import RankFault
from raylaunch.protocol import Gate

UTILS = "sglang.srt.distributed.device_communicators.custom_all_reduce_utils"
STATE = "sglang.srt.distributed.parallel_state"
WORLD_3 = "CustomAllreduce is disabled due to an unsupported world size: 3. Supported world sizes: [2, 4, 6, 8]"
UNSAID = "SGLang did not say why: see the log"
SILENCE = "To silence this warning, specify disable_custom_all_reduce=True explicitly."


class CustomAllreduce:
    """What is read of SGLang's all-reduce of that name: it has a table of rows of 64 B."""

    disabled, max_size = False, 8 << 20

    def __init__(self):
        self.rank_data = torch.empty(64 * 100, dtype=torch.uint8)


class CustomAllReduceV2:
    """What is read of SGLang's second one."""

    disabled, max_size, _graph_inputs = False, 16 << 20, ()


def spec(kind, world=2, device="cuda"):
    config = LaunchConfig.default([f"communicator.kind={kind}"])
    return types.SimpleNamespace(config=config, world_size=world, device=device, rank=0, nodes=1)


@pytest.fixture
def made(monkeypatch):
    """The custom all-reduces that SGLang has made."""
    found = []
    monkeypatch.setattr(communicators, "custom_all_reduces", lambda: found)
    monkeypatch.setattr(communicators, "require_shareable", lambda runtime: None)  # needs a GPU
    monkeypatch.setattr(communicators.CudaRuntime, "load", lambda: None)
    return found


@pytest.mark.parametrize(
    ("one", "wanted", "kind", "limit", "rows"),
    [
        (CustomAllreduce(), "custom", "sgl_kernel", 8 << 20, 99),  # one row holds the staging buffers
        (CustomAllreduce(), "sgl_kernel", "sgl_kernel", 8 << 20, 99),
        (CustomAllReduceV2(), "auto", "jit", 16 << 20, None),
        (CustomAllReduceV2(), "jit", "jit", 16 << 20, None),
    ],
)
def test_f17_the_table_that_is_told_of_is_sglangs_own(made, one, wanted, kind, limit, rows):
    made.append(one)
    facts = communicators.connected(spec(wanted), "")
    assert (facts.kind, facts.max_bytes, facts.world_size, facts.capacity) == (kind, limit, 2, rows)


@pytest.mark.parametrize(
    ("wanted", "reason"), [("custom", "no peer access"), ("auto", "no peer access"), ("library", "as configured")]
)
def test_f18_what_was_not_asked_for_by_name_falls_back_with_the_reason(made, wanted, reason):
    made.append(types.SimpleNamespace(disabled=True))
    facts = communicators.connected(spec(wanted), "no peer access")
    assert (facts.kind, facts.reason) == ("nccl", f"{reason}; {communicators.NOT_FUSED}")


@pytest.mark.parametrize("wanted", ["sgl_kernel", "jit"])
@pytest.mark.parametrize("found", [[], [types.SimpleNamespace(disabled=True)]], ids=["none", "not set up"])
def test_f18_what_was_asked_for_by_name_and_is_impossible_ends_the_launch(made, wanted, found):
    made.extend(found)
    with pytest.raises(
        RankFault, match=f"communicator.kind={wanted} is impossible here: no peer access; .*=custom would take"
    ) as caught:
        communicators.connected(spec(wanted), "no peer access")
    assert caught.value.code == "F18"


def test_f18_another_one_than_was_asked_for_by_name_ends_the_launch(made):
    made.append(CustomAllreduce())
    with pytest.raises(RankFault, match="jit was asked for and SGLang chose sgl_kernel") as caught:
        communicators.connected(spec("jit"), "")
    assert caught.value.code == "F18"


@pytest.mark.parametrize(
    ("fused", "kind", "said"),
    [
        (None, "sgl_kernel", "SGLang's CustomAllreduce; FlashInfer's fused one is off: no gate knows what it shares"),
        ("auto", "flashinfer+sgl_kernel", "FlashInfer's fused all-reduce (auto) first, as SGLang has settled"),
    ],
)
@pytest.mark.parametrize("wanted", ["custom", "sgl_kernel"])
def test_flashinfers_all_reduce_is_never_there_without_a_word(made, fused, kind, said, wanted):
    made.append(CustomAllreduce())
    facts = communicators.connected(spec(wanted), "", fused)
    assert facts.kind == kind
    assert facts.reason.startswith(said)
    assert facts.capacity == 99, "what is registered is counted all the same"


@pytest.mark.parametrize(
    ("fused", "initialized", "ends"),
    [(None, False, False), ("trtllm", True, False), ("trtllm", False, True), ("cutedsl", False, False)],
)
def test_f18_flashinfers_all_reduce_that_was_reported_is_there(fused, initialized, ends, monkeypatch):
    """Where SGLang cannot set it up it only warns."""
    workspaces = types.SimpleNamespace(_get_workspace_manager=lambda _: types.SimpleNamespace(initialized=initialized))
    for name in ("sglang", "sglang.srt", "sglang.srt.layers"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(flashinfer_comm_fusion=workspaces))
    with pytest.raises(RankFault, match="could not be set up") if ends else contextlib.nullcontext() as caught:
        communicators.require_fused(fused)
    assert not ends or caught.value.code == "F18"


@pytest.mark.parametrize("wanted", ["custom", "sgl_kernel", "jit", "library"])
def test_one_rank_reduces_nothing(made, wanted):
    assert communicators.connected(spec(wanted, world=1), "").kind == "single"


def test_cpus_have_gloo(made):
    assert communicators.connected(spec("custom", device="cpu"), "").kind == "gloo"


@pytest.fixture
def sglang_log():
    log = logging.getLogger("sglang")
    before = log.level
    yield log
    log.setLevel(before)


@pytest.mark.parametrize(
    ("said", "off", "reason"),
    [
        ([(UTILS, f"{WORLD_3}. {SILENCE}")] * 2, False, WORLD_3),
        ([(UTILS, "no NVLink"), (UTILS, "no peer access.")], False, "no NVLink; no peer access"),
        ([(STATE, f"Setup Custom allreduce failed with 1. {SILENCE}")], False, "Setup Custom allreduce failed with 1"),
        ([(STATE, "Could not determine master IP")], False, UNSAID),
        ([], False, UNSAID),
        ([], True, "SGLang has settled its argument disable_custom_all_reduce to be true"),
    ],
)
@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_the_reason_is_what_sglang_has_warned_of(said, off, reason, level, sglang_log):
    sglang_log.setLevel(level)
    with communicators.SetUpLog() as log:
        for logger, text in said:
            logging.getLogger(logger).warning(text)
    assert logging.getLogger(UTILS).getEffectiveLevel() == level
    logging.getLogger(UTILS).critical("custom_all_reduce: said later")
    assert log.reason(off) == reason


def test_a_warning_that_cannot_be_written_out_ends_no_launch(sglang_log, monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(communicators.LOG), "propagate", False)  # pytest's own handler fails over it
    with communicators.SetUpLog() as log:
        logging.getLogger(UTILS).warning("world size %d of %d", 3)
        logging.getLogger(UTILS).warning(WORLD_3)
    assert log.reason(off=False) == WORLD_3
    assert "world size %d of %d" in capsys.readouterr().err


@pytest.mark.parametrize(("draft", "gates"), [(False, 1), (True, 0)])
def test_a_rank_arrives_when_sglang_has_connected(made, draft, gates, monkeypatch):
    """A model that drafts tokens shares the groups of the one that it drafts for."""
    arrivals = []
    gate = types.SimpleNamespace(arrive=lambda *arrival: arrivals.append(arrival))
    rounds = types.SimpleNamespace(spec=spec("custom"), gate=gate, model_runner=None, fused=None)
    settled = types.SimpleNamespace(disable_custom_all_reduce=False, flashinfer_allreduce_fusion_backend="trtllm")
    monkeypatch.setattr(versions, "settled_communication", lambda: settled)
    runner = types.SimpleNamespace(is_draft_worker=draft)
    make_groups, connect, *_ = seams.life_seams(rounds)
    make_groups.wrap(lambda: logging.getLogger(UTILS).warning("no peer access"))()  # where 0.5.21 makes them
    connect.wrap(lambda self: logging.getLogger(UTILS).warning("no NVLink"))(runner)
    assert len(arrivals) == gates
    if not draft:
        assert rounds.model_runner is runner
        gate, facts = arrivals[0]
        assert (gate, facts.kind) == (Gate.CONNECTED, "flashinfer+nccl")
        assert facts.reason.endswith("(trtllm) first, as SGLang has settled; no peer access; no NVLink")
