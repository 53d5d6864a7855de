"""The engine with SGLang's driver side over a real group on Ray, whose ranks do nothing: the answers are scripted."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raylaunch import Engine, RequestFailed
from raylaunch.engine import supervisor as supervision
from raylaunch.errors import LaunchError
from raylaunch.group.launch import launch
from raylaunch.protocol import Phase
from raylaunch.resolved import launch_of
from tests.sglang.conftest import CONFIG, needs_sglang, place_ranks
from tests.sglang.scripted_rank import OFFER, ScriptedRank
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, needs_sglang]


@pytest.fixture
def idle_ranks(monkeypatch):
    """A CPU cannot run SGLang's scheduler: the group's ranks go through the gates and then wait."""

    def launched(resolved, report, listener, *, frontend, **more):
        assert resolved.program == "sglang"
        place_ranks(frontend)
        reference = resolved.config.replace({"engine.kind": "reference", "engine.device": "cpu"})
        one = launch(launch_of(reference, resolved.shape, "noop"), report, listener, **more)
        one.offer = OFFER
        return one

    monkeypatch.setattr(supervision, "launch", launched)


def with_scripted_rank(engine):
    """Gives the rank that answers requests, in a list that is filled when the frontend begins."""
    begin = engine.frontend.begin
    ranks: list[ScriptedRank] = []

    def begin_with_rank(resolved):
        begin(resolved)
        ranks.append(ScriptedRank(engine.frontend.sockets, lambda ids: engine.tokenizer.decode(ids)).__enter__())
        ranks[0].script = lambda ids, sampling: [*engine.tokenizer("42")["input_ids"], 2]

    engine.frontend.begin = begin_with_rank
    return ranks


def test_requests_a_lost_rank_and_the_end(idle_ranks):
    engine = Engine(CONFIG.replace({"recovery.rebuilds": 1}))
    ranks = with_scripted_rank(engine)
    with engine:
        assert [answer.text for answer in engine.generate(["1+1=", "2+2="])] == ["42", "42"]
        assert [span.name for span in engine.report.driver if span.phase is Phase.VERIFY] == ["first request"]
        ranks[0].hold.set()
        ranks[0].seen.clear()
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(engine.generate, "1+1=")
            wait_until(lambda: ranks[0].seen)
            os.kill(engine.report.places[1].pid, signal.SIGKILL)
            wait_until(lambda: engine.health(ask_ranks=False).condition == "rebuilding")
            ranks[0].hold.clear()
            assert engine.wait_ready(60)
            assert waits.result(10).text == "42"
        assert engine.restarts == 1
        assert engine.generate("1+1=").text == "42"
        folder = Path(engine.frontend.sockets.tokenizer.removeprefix("ipc://")).parent
        assert folder.is_dir()
    ranks[0].__exit__()
    assert not folder.exists()


def test_a_rank_that_dies_during_the_first_request_is_named(idle_ranks, monkeypatch):
    engine = Engine(CONFIG.replace({"deadlines.verify": 60}))
    up = engine.frontend.up

    def up_without_rank(*arguments):  # nobody answers
        os.kill(engine.report.places[1].pid, signal.SIGKILL)
        up(*arguments)

    monkeypatch.setattr(engine.frontend, "up", up_without_rank)
    began = time.monotonic()
    with pytest.raises(LaunchError, match="rank 1") as caught:
        engine.start()
    assert caught.value.phase == "VERIFY"
    assert caught.value.rank == 1
    assert "2 actors" in caught.value.teardown
    assert time.monotonic() - began < 60


def test_a_detokenizer_that_is_lost_for_good_takes_the_ranks_along(idle_ranks):
    """Nobody can use them any more: they must not hold their GPUs until the engine is shut down."""
    engine = Engine(CONFIG.replace({"recovery.rebuilds": 1}))
    ranks = with_scripted_rank(engine)
    with engine:
        pids = [place.pid for place in engine.report.places]
        ranks[0].hold.set()
        stream = engine.stream("1+1=", request_id="lost")
        keeper = engine.frontend._detokenizer
        keeper._restarts_left = 0
        os.kill(keeper.pid, signal.SIGKILL)
        with pytest.raises(RequestFailed, match="detokenizer was killed by signal 9"):
            list(stream)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        health = engine.health()
        assert (health.condition, health.ranks) == ("failed", ())
        assert "killed by signal 9, after it was started again" in health.reason
        with pytest.raises(RequestFailed, match="after it was started again"):
            engine.generate("1+1=")
        wait_until(lambda: "2 actors, 1 placement group" in str(engine.last_error))
        assert engine.restarts == 0
    engine.shutdown()
    ranks[0].__exit__()
