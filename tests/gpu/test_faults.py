"""Faults provoked in ranks on GPUs, also where two ranks share one: each ends in its named error or its fallback."""

from __future__ import annotations

import os

import pytest

from raylaunch import Engine, LaunchConfig, LaunchError
from raylaunch.protocol import Gate
from tests.gpu.conftest import gpus

pytestmark = pytest.mark.gpu

OVER_SOCKETS = "environment={NCCL_SOCKET_IFNAME: lo, NCCL_IB_DISABLE: '1'}"
OTHER_HOST = "{action: other_nccl_host, rank: 1}"


@pytest.mark.parametrize(
    ("fault", "code", "phase", "rank", "text"),
    [
        ("{action: skip_registration, rank: 1}", "F01", "REGISTER", 1, "without peers' addresses"),
        ("{action: extra_all_reduce, rank: 1, at: capture prefill 32}", "F03", "CAPTURE", 1, "different all-reduce"),
        ("{action: free_recorded, rank: 1, at: capture prefill 8}", "F04", "CAPTURE", 1, "captured memory was reused"),
        ("{action: zero_all_reduce, rank: 1}", "F12", "VERIFY", None, "replay differs from eager"),
        ("{action: stale_decode, rank: 1}", "F12", "VERIFY", None, "replay differs from eager at decode"),
    ],
)
def test_faults_of_graphs_are_named(
    two_ranks: LaunchConfig, fault: str, code: str, phase: str, rank: int | None, text: str
) -> None:
    with pytest.raises(LaunchError, match=text) as caught:
        Engine(two_ranks.override(f"faults=[{fault}]")).start()
    assert (caught.value.code, caught.value.phase, caught.value.rank) == (code, phase, rank), caught.value


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("{action: no_shared_memory, rank: 1}", "rank 1 cannot share memory"),
        ("{action: no_peer_access, rank: 1}", "rank 1's GPU cannot read the memory of rank 0's GPU"),
    ],
)
def test_f16_f18_the_fallback_is_nccl_on_every_rank(two_ranks: LaunchConfig, fault: str, text: str) -> None:
    """Two ranks on one GPU have NCCL only where it believes that they are on two hosts."""
    config = two_ranks.override(f"faults=[{fault}, {OTHER_HOST}]", OVER_SOCKETS)
    with Engine(config) as engine:
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"
        said = [arrival.facts for arrival in engine.report.facts(Gate.CONNECTED)[0][1]]
    assert [facts.kind for facts in said] == ["nccl", "nccl"]
    assert all(text in facts.reason for facts in said)


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        ("{action: no_shared_memory, rank: 1}", "F16", "rank 1 cannot share memory"),
        ("{action: no_peer_access, rank: 1}", "F18", "rank 1's GPU cannot read the memory of rank 0's GPU"),
    ],
)
def test_f16_f18_without_a_fallback(two_ranks: LaunchConfig, fault: str, code: str, text: str) -> None:
    if gpus() > 1:
        pytest.skip("on two GPUs there is NCCL")
    with pytest.raises(LaunchError, match=text) as caught:
        Engine(two_ranks.override(f"faults=[{fault}]")).start()
    assert (caught.value.code, caught.value.phase) == (code, "CONNECT")
    assert "share one GPU, which NCCL does not take" in str(caught.value)


def test_f16_memory_that_cannot_be_shared(two_ranks: LaunchConfig) -> None:
    """Real, not provoked: torch's allocator with expandable segments gives memory that has no handle."""
    if os.environ.get("PYTORCH_CUDA_ALLOC_CONF"):
        pytest.skip("PYTORCH_CUDA_ALLOC_CONF is set")
    config = two_ranks.replace({"environment.PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"})
    if gpus() > 1:
        with Engine(config) as engine:
            assert "expandable_segments" in engine.report.table(250)
            assert engine.generate("12+30=", max_new_tokens=8).text == "42"
        return
    with pytest.raises(LaunchError, match="expandable_segments") as caught:
        Engine(config).start()
    assert (caught.value.code, caught.value.phase) == ("F16", "CONNECT")


@pytest.mark.parametrize(
    ("at", "phase", "text"),
    [
        ("load", "LOAD", "parallel.tensor_parallel_size"),
        ("warmup", "WARMUP", "lower engine.memory_fraction or engine.kv_tokens"),
        ("capture prefill 8 2", "CAPTURE", "or capture.prefill_tokens and capture.decode_batch_sizes"),
        ("verify", "VERIFY", "lower engine.memory_fraction or engine.kv_tokens"),
    ],
)
def test_f23_memory_runs_out(two_ranks: LaunchConfig, at: str, phase: str, text: str) -> None:
    """The peers, which wait for the rank in a collective, are not blamed."""
    with pytest.raises(LaunchError) as caught:
        Engine(two_ranks.replace({"faults": [{"action": "out_of_memory", "rank": 1, "at": at}]})).start()
    error = caught.value
    assert (error.code, error.phase, error.rank, error.retryable) == ("F23", phase, 1, False), error
    assert f"no GPU memory left in {phase}" in error.headline()
    assert "1048576.00 GiB asked for, " in error.headline()
    assert " free of " in error.headline()
    assert text in error.headline()
    if phase == "CAPTURE":
        assert (error.round, error.shape, error.iteration) == ("prefill", 8, 2)


def test_f23_a_cache_that_does_not_fit(two_ranks: LaunchConfig) -> None:
    """Real, not provoked."""
    with pytest.raises(LaunchError, match=r"the KV cache needs \d+ MiB") as caught:
        Engine(two_ranks.replace({"engine.kv_tokens": 10_000_000_000})).start()
    assert (caught.value.code, caught.value.phase) == ("F23", "WARMUP")
    assert "no GPU memory left in WARMUP (" in caught.value.headline()
