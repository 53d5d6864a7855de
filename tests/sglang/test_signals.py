"""Signals from outside to real ranks of SGLang on CPUs: each is named, whoever spoke first (F06, F07, F27)."""

from __future__ import annotations

from collections.abc import Callable
from signal import Signals

import pytest

from raylaunch import Engine
from raylaunch.protocol import Phase
from tests.sglang.test_real_ranks import can_run, config_of
from tests.signals import WORDS, clients, cut_off, strike_each

__all__ = ["can_run"]  # the fixture skips where SGLang cannot run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

HEALTH_S = 6.0
AGAIN_S = 300.0
BOTH = (0, 1)


def asks(engine: Engine) -> Callable[[], object]:
    return lambda: engine.generate("1+1=", max_new_tokens=50, ignore_eos=True)


@pytest.mark.parametrize("number", WORDS, ids=lambda one: one.name)
def test_each_signal_while_serving(number: Signals) -> None:
    """To rank 0, to rank 1, and to both at once; the last loss is named as the first."""
    with (
        Engine(config_of("recovery.rebuilds=3", f"deadlines.health={HEALTH_S}")) as engine,
        clients(asks(engine), 16),
    ):
        strike_each(engine, [(number, (0,)), (number, (1,)), (number, BOTH)], AGAIN_S, HEALTH_S)
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"


@pytest.mark.parametrize("rank", BOTH)
def test_a_rank_that_is_slow_to_die(rank: int) -> None:
    """F27: its peer's error comes long before its own end."""
    slow = f"faults=[{{action: slow_to_die, rank: {rank}}}]"
    with Engine(config_of("recovery.rebuilds=2", slow)) as engine, clients(asks(engine), 16):
        strike_each(engine, [(Signals.SIGKILL, (rank,)), (Signals.SIGTERM, (rank,))], AGAIN_S, HEALTH_S)


@pytest.mark.parametrize(("number", "rank"), [(Signals.SIGKILL, 0), (Signals.SIGTERM, 1)])
def test_in_each_phase_of_the_launch(number: Signals, rank: int) -> None:
    phases = [Phase.CONNECT, Phase.LOAD, Phase.WARMUP, Phase.VERIFY]
    cut_off(lambda listener: Engine(config_of("recovery.rebuilds=4"), listener=listener), number, rank, phases)
