"""SGLang's real driver side over a scripted rank 0; skipped where SGLang is not installed."""

from __future__ import annotations

import contextlib
import os

import pytest

from raylaunch.config import LaunchConfig
from raylaunch.errors import LaunchError
from raylaunch.frontends.answers import Waiter
from raylaunch.frontends.base import Meeting
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.model_check import check_model
from raylaunch.resolved import launch_of
from raylaunch.sglang.arguments import installed_folder, server_arguments
from tests.sglang.scripted_rank import OFFER, ScriptedRank

LOST = LaunchError("rank 1 is lost", "F07", "SERVE")
needs_sglang = pytest.mark.skipif(installed_folder() is None, reason="needs sglang")
REFERENCE = LaunchConfig.default(["serve.port=0", "deadlines.verify=20"])
CONFIG = REFERENCE.replace(
    {
        "engine.kind": "sglang",
        "engine.device": "auto",
        "engine.max_running_requests": 4,
        "engine.max_waiting_requests": 4,
        "engine.sglang.args": {"device": "cpu"},
    }
)
HERE = Meeting(True, "127.0.0.1")
RESOLVED = launch_of(CONFIG, check_model(REFERENCE))


def start(frontend, prompt="12+30=", request_id=None, **params):
    prepared = frontend.prepare(prompt, SamplingParams(**params))
    return lambda listener: frontend.submit(prepared, listener, request_id or os.urandom(4).hex())


def ask(frontend, prompt="12+30=", **params):
    return Waiter(frontend, start(frontend, prompt, **params)).completion()


def place_ranks(frontend, config=CONFIG, where=HERE):
    """As far as ATTACH, with what a rank would settle. Returns where the ranks must meet the frontend."""
    sockets = frontend.meet(where)
    frontend._importing.result(90)  # two threads that import the same modules may wait for each other
    from raylaunch_actors.sglang_engine.launch import settled
    from raylaunch_actors.sglang_engine.versions import server_args

    before = dict(os.environ)
    frontend.attach(settled(server_args(server_arguments(config.replace({"serve": {}}))), before))
    return sockets


@contextlib.contextmanager
def begun_frontend(config=CONFIG):
    from raylaunch.sglang.frontend import SglangFrontend

    one = SglangFrontend(config)
    one.begin(launch_of(config, RESOLVED.shape))
    try:
        place_ranks(one, config)
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def frontend():
    """A frontend that is up: it lives as long as a file's tests, its ranks come and go. Engines with other arguments of
    SGLang's cannot live beside it."""
    with begun_frontend() as one:
        yield one


@pytest.fixture
def rank(frontend):
    """A rank that has just been launched; ``42`` is what it says to everything."""
    with ScriptedRank(frontend.sockets, lambda ids: frontend.tokenizer.decode(ids)) as one:
        frontend.up(OFFER, RESOLVED)
        one.seen.clear()
        one.script = lambda ids, sampling: [*frontend.tokenizer("42")["input_ids"], one.eos]
        yield one
        frontend.down(LOST)
