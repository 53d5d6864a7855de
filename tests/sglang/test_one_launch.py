"""Two ranks of SGLang's own scheduler on CPUs, once: launched, verified, answering; CI's only launch with SGLang."""

from __future__ import annotations

import pytest

from raylaunch import Engine
from raylaunch.protocol import Gate, VerifyFacts
from tests.sglang.test_real_ranks import SUMS, alive, can_run, config_of, shared_memory

__all__ = ["can_run"]  # the fixture skips where SGLang cannot run

LONG = 1025  # tokens: the prompt of sglang#14193


@pytest.mark.timeout(600)
def test_two_ranks_answer() -> None:
    with Engine(config_of()) as engine:
        verified = [one.facts for step in engine.report.facts(Gate.VERIFIED) for one in step[1]]
        assert len(verified) == 2
        assert all(isinstance(one, VerifyFacts) for one in verified)
        texts = [one.text for one in engine.generate([f"{a}+{b}=" for a, b in SUMS], max_new_tokens=8)]
        assert texts == [str(a + b) for a, b in SUMS]
        assert "".join(chunk.text for chunk in engine.stream("12+30=", max_new_tokens=8)) == "42"
        first, second = (engine.generate([[3] * LONG], max_new_tokens=4, ignore_eos=True)[0] for _ in range(2))
        assert first.token_ids == second.token_ids
        assert len(first.token_ids) == 4
        pids = [place.pid for place in engine.report.places]
    assert alive(pids) == []
    assert shared_memory(pids) == []
