"""No request is lost with its group (F07, F28)."""

from __future__ import annotations

import pytest

from raylaunch import Engine, LaunchConfig
from raylaunch.frontends.sampling import SamplingParams
from tests.survival import CLIENTS, survive

LOSSES = 10
PROMPTS = [f"{a}+{b}=" for a in range(12, 20) for b in range(30, 34)]


@pytest.mark.slow
@pytest.mark.timeout(850)
def test_every_rank_lost_in_turn(tiny: LaunchConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """Each answer is the one without a loss, token by token: none twice, none missing."""
    with Engine(tiny.override(f"recovery.rebuilds={2 * LOSSES}", "deadlines.health=4")) as engine:
        seen = survive(engine, LOSSES, PROMPTS, SamplingParams(max_new_tokens=300, ignore_eos=True))
        assert engine.restarts >= LOSSES
    with capsys.disabled():
        figures = ", ".join(f"{one:.1f}" for one in seen.pauses)
        print(f"\n{LOSSES} losses, {seen.answers} answers; seconds from a signal to the next token: {figures}")
    assert seen.failed == []
    assert seen.unlike == []
    assert seen.answers >= CLIENTS
