"""Signals from outside to ranks of SGLang on GPUs, which need seconds to give their memory back (F07, F27)."""

from __future__ import annotations

import time
from pathlib import Path
from signal import Signals

import pytest

from raylaunch import Engine
from tests.gpu.conftest import gpus
from tests.gpu.shapes import make_model
from tests.gpu.test_sglang import LAYERS, MODELS, config_for, gone, installed
from tests.signals import clients, strike_each

__all__ = ["installed"]  # the fixture skips where SGLang is not installed

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

CLIENTS = 16
AGAIN_S = 240.0


def test_f27_killed_and_asked_to_end_while_serving(tmp_path: Path) -> None:
    """The right rank and its signal, unready within 0.3 s, no other rank named at first; then it serves again."""
    if gpus() < 2:
        pytest.skip("needs 2 GPUs")
    plan = [(number, (rank,)) for rank in (0, 1) for number in (Signals.SIGKILL, Signals.SIGTERM)]
    config = config_for(make_model(tmp_path / "m", MODELS[0], LAYERS), f"recovery.rebuilds={len(plan)}")
    with Engine(config) as engine:
        before = engine.generate([[3] * 100], max_new_tokens=8, ignore_eos=True)[0].token_ids
        with clients(lambda: engine.generate([[5] * 100], max_new_tokens=500, ignore_eos=True), CLIENTS):
            for number, ranks in plan:
                pids = [place.pid for place in engine.report.places]
                time.sleep(1.0)  # until all clients' requests run again
                strike_each(engine, [(number, ranks)], AGAIN_S, config.deadlines.health)
                assert gone(pids)
        assert engine.generate([[3] * 100], max_new_tokens=8, ignore_eos=True)[0].token_ids == before
