"""SGLang's own detokenizer, killed in every condition of the ranks."""

from __future__ import annotations

import os
import signal
import time

import pytest

from raylaunch.errors import LaunchError, RequestFailed
from raylaunch.frontends.answers import Waiter
from tests.sglang.conftest import CONFIG, LOST, RESOLVED, ask, begun_frontend, needs_sglang, start
from tests.sglang.scripted_rank import OFFER, ScriptedRank
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, needs_sglang]


@pytest.fixture(scope="module")
def frontend():
    """Of these tests alone: a detokenizer is started again only three times."""
    with begun_frontend() as one:
        yield one


def kill(frontend):
    before = frontend._detokenizer.pid
    os.kill(before, signal.SIGKILL)
    return before


def test_asked_to_end_like_every_process_of_a_job_that_is_stopped(frontend, rank):
    """It goes on: answers that run end first, and its parent ends it."""
    before = frontend._detokenizer.pid
    os.kill(before, signal.SIGTERM)
    time.sleep(0.5)
    assert ask(frontend).text == "42"
    assert (frontend._detokenizer.pid, frontend.trouble()) == (before, "")


def test_while_it_answers(frontend, rank):
    rank.hold.set()
    waiter = Waiter(frontend, start(frontend))
    wait_until(lambda: rank.seen)
    before = kill(frontend)
    with pytest.raises(RequestFailed, match="detokenizer was killed by signal 9"):
        waiter.completion()
    assert frontend.trouble() == "SGLang's detokenizer was killed by signal 9"
    with pytest.raises(RequestFailed, match="not ready: SGLang's detokenizer was killed"):
        ask(frontend)
    rank.hold.clear()
    rank.script = lambda ids, sampling: [5] * sampling.max_new_tokens
    wait_until(lambda: not frontend.trouble(), 90)
    assert frontend._detokenizer.pid != before
    assert ask(frontend, max_new_tokens=2).text == "11"


def test_while_the_group_is_rebuilt(frontend, rank):
    frontend.down(LOST)
    kill(frontend)
    wait_until(frontend.trouble)
    frontend.raise_if_failed()
    frontend.up(OFFER, RESOLVED)
    assert not frontend.trouble()
    assert ask(frontend).text == "42"


def test_a_rank_is_lost_while_its_successor_is_asked(frontend, rank):
    rank.hold.set()
    kill(frontend)
    wait_until(lambda: rank.seen, 90)  # the request that is to show that it works
    frontend.down(LOST)
    rank.hold.clear()
    frontend.up(OFFER, RESOLVED)
    assert not frontend.trouble()
    assert ask(frontend).text == "42"


def test_one_that_is_stopped_is_as_good_as_dead():
    """F25: requests would wait for it while the ranks say that all is well."""
    with begun_frontend(CONFIG.override("deadlines.health=1")) as one, ScriptedRank(one.sockets) as rank:
        one.up(OFFER, RESOLVED)
        rank.hold.set()
        waiter = Waiter(one, start(one))
        wait_until(lambda: rank.seen)
        os.kill(one._detokenizer.pid, signal.SIGSTOP)
        with pytest.raises(RequestFailed, match=r"detokenizer was stopped \(SIGSTOP\) for 0.8 s, and killed"):
            waiter.completion()


def test_once_too_often(frontend, rank):
    """The last test: nothing answers after it."""
    kill(frontend)
    wait_until(lambda: frontend.failure() is not None)
    assert "killed by signal 9, after it was started again 3 times" in frontend.failure().headline()
    with pytest.raises(RequestFailed, match="not ready: SGLang's detokenizer was killed"):
        ask(frontend)
    with pytest.raises(LaunchError, match="started again 3 times"):
        frontend.raise_if_failed()


def test_before_the_first_request_was_answered():
    """A failed launch, named at once although ranks hold the first request."""
    with begun_frontend() as one, ScriptedRank(one.sockets) as rank:
        rank.hold.set()
        wait_until(lambda: one.side is not None, 90)
        pid = one._detokenizer.pid
        wait_until(lambda: one._detokenizer._process.wait(0), 90)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(LaunchError, match="detokenizer was killed by signal 9"):
            one.up(OFFER, RESOLVED)
