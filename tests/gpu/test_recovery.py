"""Requests that outlive their group under SGLang on GPUs, with spare ranks and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylaunch import Engine
from raylaunch.frontends.sampling import SamplingParams
from tests.gpu.conftest import gpus
from tests.gpu.shapes import make_model
from tests.gpu.test_sglang import LAYERS, MODELS, config_for, gone, installed
from tests.standing import pids_of, spare_pids
from tests.survival import survive

__all__ = ["installed"]  # the fixture skips where SGLang is not installed

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

LOSSES = 3
PROMPTS = [f"t{first} t{first + 7} t5 t6" for first in (11, 222, 3333, 44444)]
TIED = 0.004
"""Dummy weights make logits of at most 0.25, where bfloat16 has steps of 0.001; four are what its sums err by."""


@pytest.mark.parametrize("standby", [0, 1])
def test_no_request_is_lost_with_its_group(standby: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each answer is the one without a loss, up to the first token that bfloat16 cannot tell from the next best."""
    if gpus() < 2:
        pytest.skip("needs 2 GPUs")
    more = ("recovery.rebuilds=6", f"recovery.standby={standby}", "recovery.give_up_s=300")
    params = SamplingParams(max_new_tokens=200, ignore_eos=True)
    with Engine(config_for(make_model(tmp_path / "m", MODELS[0], LAYERS, tokenizer=True), *more)) as engine:
        lost = list[int]()

        def ready() -> None:
            lost.extend(pids_of(engine))
            if standby:
                spare_pids(engine, 2)

        seen = survive(engine, LOSSES, PROMPTS, params, ready)
        assert seen.failed == []
        assert engine.restarts >= LOSSES
        gaps = [gap_at_the_first_difference(engine, *one) for one in seen.unlike]
        with capsys.disabled():
            print(engine.report.table(160))
            pauses = ", ".join(f"{one:.1f}" for one in seen.pauses)
            print(f"\nstandby {standby}: seconds from SIGKILL 0, SIGKILL 1, SIGSTOP 0 to the next token: {pauses}")
            print(f"{seen.answers} answers equal, {len(gaps)} not; gaps of logits: {[f'{one:.5f}' for one in gaps]}")
        assert all(len(got) == 200 for _, got, _ in seen.unlike)
        assert all(gap < TIED for gap in gaps), gaps
        assert seen.answers > 0
        lost += pids_of(engine)
    assert gone(lost)


def gap_at_the_first_difference(engine: Engine, prompt: str, got: tuple[int, ...], right: tuple[int, ...]) -> float:
    """How much less likely (in nats) the second best token is, where two answers part."""
    same = next(place for place, (one, other) in enumerate(zip(got, right, strict=True)) if one != other)
    ids = [int(word[1:]) for word in prompt.split()] + list(right[:same])
    (answer,) = engine.generate([ids], SamplingParams(max_new_tokens=1, logprobs=2, ignore_eos=True))
    assert answer.logprobs is not None
    (_, best), (_, second) = answer.logprobs[0].top[:2]
    return best - second
