"""Groups of four and of eight ranks: they answer as one rank does, and the right one of four is named."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from raylaunch import Engine, LaunchConfig, LaunchError
from raylaunch.protocol import Gate, Phase, RegisterFacts
from tests.busy import patient
from tests.launch.test_models import prompt
from tests.models import save

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean")]

RANKS = 4
CULPRIT = 2


@dataclass(frozen=True)
class Case:
    """A fault of rank 2 and how the launch of four must end: code, phase and a text of the error."""

    fault: str
    code: str
    phase: str
    text: str
    within_s: float
    settings: tuple[str, ...] = ()


CASES = {
    "F03-extra-input": Case(
        "extra_all_reduce, at: capture prefill 32", "F03", "CAPTURE", "different all-reduce inputs", 3
    ),
    "F05-exception": Case("raise, at: capture prefill 8 2", "F05", "CAPTURE", "ValueError: raised on purpose", 3),
    "F06-kill-in-load": Case("kill, at: load", "F06", "LOAD", "rank 2 died", 3),
    "F06-kill-while-capturing": Case("kill, at: capture prefill 8 1", "F06", "CAPTURE", "rank 2 died", 3),
    "F08-sleep": Case("sleep, at: capture prefill 8 1", "F08", "CAPTURE", "still busy", 8, ("deadlines.capture=2",)),
    "F08-hold-gil": Case(
        "hold_gil, at: capture prefill 8 1", "F08", "CAPTURE", "native code", 12, ("deadlines.capture=2",)
    ),
    "F08-stop": Case("stop, at: capture prefill 8 1", "F08", "CAPTURE", "stopped", 12, ("deadlines.capture=2",)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_right_one_of_four_is_named(case: Case, tiny: LaunchConfig) -> None:
    """Three secondary failures to one culprit, all spinning on fewer cores than ranks: none of them may be blamed."""
    step_began: list[float] = []
    config = tiny.override(f"faults=[{{action: {case.fault}, rank: {CULPRIT}}}]", *case.settings).replace(
        {"parallel.tensor_parallel_size": RANKS}
    )
    with pytest.raises(LaunchError) as caught:
        Engine(config, listener=lambda *_: step_began.append(time.monotonic())).start()
    took, error = time.monotonic() - step_began[-1], caught.value
    assert (error.code, error.phase, error.rank) == (case.code, case.phase, CULPRIT), error
    assert case.text in str(error)
    assert [evidence.rank for evidence in error.ranks] == list(range(RANKS))
    assert "4 actors, 1 placement group released" in error.teardown
    assert took < patient(case.within_s)


NEW_TOKENS = 16


def answered(name: str, folder: Path, ranks: int) -> list[tuple[int, ...]]:
    """Token ids for a short prompt and for one of 1025 tokens, twice; every phase is looked at on the way."""
    config = LaunchConfig.from_dict(
        {
            "name": name.replace("_", "-"),
            "model": {"path": str(save(name, folder)), "dtype": "float32"},
            "parallel": {"tensor_parallel_size": ranks},
            "engine": {"kind": "reference", "device": "cpu", "kv_tokens": 4096},
            "capture": {"prefill_tokens": [128, 1032], "decode_batch_sizes": [2]},
            "placement": {"resources_per_rank": {"CPU": 0.5}},
        }
    )
    with Engine(config) as engine:
        prompts = [prompt(128), prompt(1025), prompt(1025)]
        ids = [engine.generate([one], max_new_tokens=NEW_TOKENS)[0].token_ids for one in prompts]
        report = engine.report
    assert {record.step.phase for record in report.steps} == set(Phase) - {Phase.PLACE, Phase.SERVE}
    for _, arrivals in report.facts(Gate.REGISTERED):
        facts = [one.facts for one in arrivals if isinstance(one.facts, RegisterFacts)]
        assert len(facts) == ranks
        assert {one.pending for one in facts} == {0}
        assert len({one.registered for one in facts}) == 1
        assert (facts[0].registered > 0) == (ranks > 1)
    return ids


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "sizes"), [("qwen3_many_heads", (4, 8)), ("qwen3_moe", (4,)), ("qwen2_5_vl", (4,))])
def test_many_ranks_answer_as_one_does(name: str, sizes: tuple[int, ...], tmp_path: Path) -> None:
    """The prompt of 1025 tokens is sent twice: what crashed in sglang#14193 (F20)."""
    alone = answered(name, tmp_path, 1)
    assert alone[1] == alone[2]
    for ranks in sizes:
        assert answered(name, tmp_path, ranks) == alone, f"{ranks} ranks"
