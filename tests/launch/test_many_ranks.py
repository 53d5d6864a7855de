"""Groups of four and of eight ranks: they answer as one rank does, and the right one of four is named."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from raylaunch import Engine, LaunchConfig, LaunchError

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
    """Three victims to one culprit, all spinning on fewer cores than ranks: none of them may be blamed."""
    step_began: list[float] = []
    config = tiny.override(
        f"parallel.tensor_parallel_size={RANKS}",
        f"faults=[{{action: {case.fault}, rank: {CULPRIT}}}]",
        *case.settings,
    )
    with pytest.raises(LaunchError) as caught:
        Engine(config, listener=lambda *_: step_began.append(time.monotonic())).start()
    took, error = time.monotonic() - step_began[-1], caught.value
    print(f"{took:.1f} s\n{error}")
    assert (error.code, error.phase, error.rank) == (case.code, case.phase, CULPRIT), error
    assert case.text in str(error)
    assert [evidence.rank for evidence in error.ranks] == list(range(RANKS))
    assert "4 actors, 1 placement group released" in error.teardown
    assert took < case.within_s
