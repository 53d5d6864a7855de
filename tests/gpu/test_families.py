"""Under SGLang: models whose caches are not just keys and values of every token, small and with dummy weights.

VERIFY places tokens itself: in windows, in states and in compressed caches that must be right too.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from raylaunch import Engine
from tests.gpu.test_sglang import config_for, installed  # noqa: F401  # a fixture
from tests.sglang_engine.families import FAMILIES, write_family

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_verified_and_answers_twice_alike(family: str, tmp_path: Path) -> None:
    config = config_for(write_family(family, tmp_path), "capture.prefill_tokens=[64, 512]")
    with Engine(config) as engine:
        print(engine.report.table(200))
        for length in (300, 500):
            prompt = [2 + i % 900 for i in range(length)]
            answers = [engine.generate([prompt], max_new_tokens=16, ignore_eos=True)[0].token_ids for _ in range(2)]
            assert answers[0] == answers[1]
