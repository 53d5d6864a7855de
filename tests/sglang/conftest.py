"""SGLang's real driver side over a scripted rank 0; skipped where SGLang is not installed."""

from __future__ import annotations

import time

import pytest

from raylaunch.config import LaunchConfig
from raylaunch.errors import LaunchError
from raylaunch.model_check import check_model
from raylaunch.sglang.arguments import installed_folder
from tests.sglang.scripted_rank import OFFER, ScriptedRank

LOST = LaunchError("rank 1 is lost", "F07", "SERVE")
needs_sglang = pytest.mark.skipif(installed_folder() is None, reason="needs sglang")
REFERENCE = LaunchConfig.default(["serve.port=0", "deadlines.verify=20"])
CONFIG = REFERENCE.override(
    "engine.kind=sglang",
    "engine.device=auto",
    "engine.max_running_requests=4",
    "engine.max_waiting_requests=4",
    "engine.sglang.args={device: cpu}",
)


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="session")
def frontend():
    """A frontend that is up: it lives as long as the tests, its ranks come and go."""
    from raylaunch.frontends.sglang import SglangFrontend

    one = SglangFrontend(CONFIG)
    one.begin(check_model(REFERENCE))
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def rank(frontend):
    """A rank that has just been launched; ``42`` is what it says to everything."""
    with ScriptedRank(frontend.sockets, lambda ids: frontend.tokenizer.decode(ids)) as one:
        frontend.up(OFFER)
        one.seen.clear()
        one.script = lambda ids, sampling: [*frontend.tokenizer("42")["input_ids"], one.eos]
        yield one
        frontend.down(LOST)
