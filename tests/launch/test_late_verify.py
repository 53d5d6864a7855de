"""Shapes that are verified while a group serves: all of them, in step, and a wrong one ends the group."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from raylaunch import Engine, LaunchConfig
from raylaunch.protocol import Gate, VerifyFacts
from tests.busy import patient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.usefixtures("clean")]

SUMS = [(a, b) for a in range(3, 99, 13) for b in range(5, 99, 17)]
FIRST = {"prefill 8", "prefill 32", "decode 2", "decode 8"}


@pytest.fixture
def config() -> LaunchConfig:
    shapes = ["capture.prefill_tokens=[8, 16, 24, 32]", "capture.decode_batch_sizes=[2, 4, 6, 8]"]
    return LaunchConfig.default([*shapes, "capture.verify_first=0"])


def test_all_shapes_are_verified_between_requests(config: LaunchConfig) -> None:
    """Clients come in waves; a shape is begun only where none is there, and each answer is right."""
    with Engine(config) as engine, ThreadPoolExecutor(8) as pool:
        verified = engine.report.facts(Gate.VERIFIED)[0][1][0].facts
        assert isinstance(verified, VerifyFacts)
        assert set(verified.shapes) == FIRST

        def ask(numbers: tuple[int, int]) -> str:
            return engine.generate(f"{numbers[0]}+{numbers[1]}=", max_new_tokens=8).text

        end = time.monotonic() + patient(30)
        while engine.report.unverified and time.monotonic() < end:
            assert list(pool.map(ask, SUMS[:8])) == [str(a + b) for a, b in SUMS[:8]]
            time.sleep(0.5)
        assert engine.report.unverified == ()
        later = engine.report.facts(Gate.LATER)
        assert {f"{step.round} {step.shape}" for step, _ in later} == set(engine.report.shapes) - FIRST
        for step, arrivals in later:
            verdicts = [one.facts.shapes for one in arrivals if isinstance(one.facts, VerifyFacts)]
            assert len(verdicts) == 2, step
            assert verdicts[0] == verdicts[1]
        assert list(pool.map(ask, SUMS)) == [str(a + b) for a, b in SUMS]
        trace = [one["name"] for one in engine.report.chrome_trace()["traceEvents"]]
        assert "SERVE verified later decode 6 requests" in trace


def test_f12_a_wrong_graph_that_is_verified_late(config: LaunchConfig) -> None:
    """The group is lost as by any other fault; the next one has every shape verified first, and fails by the same."""
    faults = [{"action": "stale_decode", "rank": 1, "at": "capture decode 4"}]
    with Engine(config.replace({"faults": faults, "recovery.rebuilds": 3})) as engine:
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"
        end = time.monotonic() + patient(90)
        while engine.health(ask_ranks=False).condition != "failed" and time.monotonic() < end:
            time.sleep(0.1)
        assert engine.health(ask_ranks=False).condition == "failed"
        (_, error), *_ = engine.failures
        assert (error.code, error.phase, error.round, error.shape) == ("F12", "SERVE", "decode", 4), error
        assert "replay differs from eager at decode 4" in str(error)
        assert "2 actors, 1 placement group released" in error.teardown
        (again, *_) = error.followers
        assert (again.code, again.phase, again.shape) == ("F12", "VERIFY", 4), again
