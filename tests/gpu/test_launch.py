"""Launches on CUDA devices: CUDA graphs, and sgl_kernel's all-reduce between ranks."""

from __future__ import annotations

import pytest

from raylaunch import Engine, LaunchConfig, LaunchError
from raylaunch.protocol import Gate
from tests.gpu.conftest import gpus

pytestmark = pytest.mark.gpu

SUMS = [(a, b) for a in range(1, 99, 14) for b in range(3, 99, 19)]


def answers(config: LaunchConfig) -> tuple[list[str], Engine]:
    with Engine(config) as engine:
        done = engine.generate([f"{a}+{b}=" for a, b in SUMS], max_new_tokens=8)
        return [one.text for one in done], engine


def test_one_rank() -> None:
    texts, engine = answers(LaunchConfig.default(["engine.device=cuda", "parallel.tensor_parallel_size=1"]))
    assert texts == [str(a + b) for a, b in SUMS]
    assert "12 graphs: replay equals eager" in engine.report.table(200)


def test_two_ranks_register_their_inputs(two_ranks: LaunchConfig) -> None:
    texts, engine = answers(two_ranks)
    assert texts == [str(a + b) for a, b in SUMS]
    assert "sgl_kernel" in engine.report.table(200)
    for _, arrivals in engine.report.facts(Gate.REGISTERED):
        assert {arrival.facts.pending for arrival in arrivals} == {0}
    last = engine.report.facts(Gate.REGISTERED)[-1][1]
    assert [arrival.facts.registered for arrival in last] == [24, 24]  # 4 all-reduces at 6 shapes
    met = [arrival.facts for arrival in engine.report.facts(Gate.MEET)[0][1]]
    assert [one.device for one in met] == (["cuda:0", "cuda:1"] if gpus() > 1 else ["cuda:0"] * 2)
    assert len({one.gpu for one in met} - {""}) == min(2, gpus())
    assert {one.niceness for one in met} == {0}, "Ray starts workers at 15"
    for name in ("GPU", "version of the GPU driver", "version of NCCL"):
        assert met[0].fingerprint[name] == met[1].fingerprint[name] != "unknown"


@pytest.mark.parametrize(
    ("fault", "code", "phase", "rank"),
    [
        ("{action: third_iteration, rank: 1}", "F01", "CAPTURE", 1),
        ("{action: no_capture_context, rank: 0}", "F02", "CAPTURE", 0),
        ("{action: raise, rank: 1, at: capture prefill 32 2}", "F05", "CAPTURE", 1),
        ("{action: kill, rank: 1, at: capture prefill 32 2}", "F06", "CAPTURE", 1),
    ],
)
def test_faults_are_named(two_ranks: LaunchConfig, fault: str, code: str, phase: str, rank: int) -> None:
    with pytest.raises(LaunchError) as caught:
        Engine(two_ranks.override(f"faults=[{fault}]")).start()
    assert (caught.value.code, caught.value.phase, caught.value.rank) == (code, phase, rank), caught.value
    assert [one.device for one in caught.value.ranks] == ["gpu 0", "gpu 1" if gpus() > 1 else "gpu 0"]


@pytest.mark.skipif(gpus() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(
    ("action", "rank", "text"),
    [
        ("reversed_gpus", None, "ranks 0 and 1 were given cuda:0 and cuda:1 and are on one GPU"),
        ("hidden_gpus", 1, "rank 1 wants GPU 1 of those visible, which are 1"),
    ],
)
def test_f09_gpus_that_are_numbered_otherwise(
    two_ranks: LaunchConfig, action: str, rank: int | None, text: str
) -> None:
    with pytest.raises(LaunchError, match=text) as caught:
        Engine(two_ranks.replace({"faults": [{"action": action, "rank": 1}]})).start()
    assert (caught.value.code, caught.value.phase, caught.value.rank) == ("F09", "CONNECT", rank), caught.value
    texts, _ = answers(two_ranks)  # on the same GPUs
    assert texts == [str(a + b) for a, b in SUMS]


@pytest.mark.parametrize(
    ("at", "phase"), [("capture prefill 32 2", "CAPTURE"), ("capture decode", "CAPTURE"), ("verify", "VERIFY")]
)
def test_a_hang_is_blamed_on_the_rank_that_hangs(two_ranks: LaunchConfig, at: str, phase: str) -> None:
    """The peer waits meanwhile, at a gate or on its GPU for a sum that never comes: it must not be blamed."""
    settings = {"capture.granularity": "shape", "deadlines.capture": 20, "deadlines.verify": 20}
    with pytest.raises(LaunchError) as caught:
        Engine(two_ranks.replace({"faults": [{"action": "sleep", "rank": 1, "at": at}], **settings})).start()
    assert (caught.value.code, caught.value.phase, caught.value.rank) == ("F08", phase, 1), caught.value
    assert "time.sleep" in caught.value.ranks[1].stacks


def test_f17_a_table_of_just_the_planned_inputs_is_large_enough(two_ranks: LaunchConfig) -> None:
    texts, _ = answers(two_ranks.replace({"communicator.table_rows": 24}))
    assert texts == [str(a + b) for a, b in SUMS]


def test_f17_table_too_small(two_ranks: LaunchConfig) -> None:
    with pytest.raises(LaunchError, match="10 rows") as caught:
        Engine(two_ranks.replace({"communicator.table_rows": 10})).start()
    assert (caught.value.code, caught.value.phase) == ("F17", "WARMUP")
