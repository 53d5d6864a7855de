"""Shapes that SGLang's ranks verify while they serve: in step, in rows that its scheduler lends, and a wrong one ends
the group. On CPUs, whose ranks are given graphs; ``tests/gpu/test_sglang.py`` has real ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import ray

from raylaunch import Engine
from raylaunch.protocol import Gate, VerifyFacts
from tests.busy import patient
from tests.sglang import cpu_graphs
from tests.sglang.test_real_ranks import can_run, config_of  # noqa: F401  # the first is a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PREFIX = "12+30=" * 40
LATE = ("capture.verify_first=0",)


@pytest.fixture
def session() -> Iterator[None]:
    """Workers that come with graphs."""
    hook = f"{cpu_graphs.__name__}.{cpu_graphs.install.__name__}"
    ray.init(num_cpus=4, include_dashboard=False, runtime_env={"worker_process_setup_hook": hook})
    yield
    ray.shutdown()


@pytest.mark.usefixtures("session")
def test_all_shapes_are_verified_between_requests() -> None:
    with Engine(config_of(*LATE)) as engine:
        verified = engine.report.facts(Gate.VERIFIED)[0][1][0].facts
        assert isinstance(verified, VerifyFacts)
        assert set(verified.shapes) == {"decode 2", "decode 12"}
        right = engine.generate(PREFIX, max_new_tokens=12, ignore_eos=True).token_ids
        end = time.monotonic() + patient(60)
        while engine.report.unverified and time.monotonic() < end:
            # its keys are in the prefix cache, in rows that must not be written to
            assert engine.generate(PREFIX, max_new_tokens=12, ignore_eos=True).token_ids == right
            time.sleep(0.5)
        assert engine.report.unverified == ()
        later = engine.report.facts(Gate.LATER)
        assert [step.shape for step, _ in later] == [10, 8, 6, 4]
        for _, arrivals in later:
            verdicts = [one.facts.shapes for one in arrivals if isinstance(one.facts, VerifyFacts)]
            assert verdicts[0] == verdicts[1] != {}
        assert engine.generate(PREFIX, max_new_tokens=12, ignore_eos=True).token_ids == right
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"
        print(engine.report.table(140))
        assert engine.health().ready


@pytest.mark.usefixtures("session")
def test_f12_a_wrong_graph_that_is_verified_late() -> None:
    with Engine(config_of(*LATE, f"environment.{cpu_graphs.WRONG}=8", "recovery.rebuilds=0")) as engine:
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"
        pids = [place.pid for place in engine.report.places]
        end = time.monotonic() + patient(60)
        while engine.health(ask_ranks=False).condition != "failed" and time.monotonic() < end:
            time.sleep(0.1)
        ((_, error),) = engine.failures
        print(error)
        assert (error.code, error.phase, error.round, error.shape, error.rank) == ("F12", "SERVE", "decode", 8, 1)
        assert "differs from eager at decode 8" in error.headline()
        assert [step.shape for step, _ in engine.report.facts(Gate.LATER)] == [10]
        assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
