"""SGLang's tokenizer manager and detokenizer, kept by the frontend while scripted ranks come and go."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from raylaunch.background import Background
from raylaunch.errors import ConfigError, LaunchError, RequestError, RequestFailed
from raylaunch.frontends.answers import AsyncWaiter, Waiter
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.sglang import frontend as frontends
from raylaunch.sglang.frontend import SglangFrontend
from raylaunch.sglang.versions import Published
from tests.busy import patient
from tests.sglang.conftest import CONFIG, LOST, RESOLVED, ask, needs_sglang, place_ranks, start
from tests.sglang.scripted_rank import OFFER, ScriptedRank
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, needs_sglang]


def test_text_and_ids(frontend, rank):
    for prompt in ("12+30=", frontend.tokenizer("12+30=")["input_ids"]):
        answer = ask(frontend, prompt)
        assert (answer.text, answer.finish_reason, answer.prompt_tokens) == ("42", "stop", 6)
        assert list(answer.token_ids) == frontend.tokenizer("42")["input_ids"]
    cut = ask(frontend, max_new_tokens=1)
    assert (cut.text, cut.finish_reason) == ("4", "length")


def test_stop_strings_and_log_probabilities(frontend, rank):
    assert ask(frontend, stop="2").text == "4"
    answer = ask(frontend, logprobs=1)
    assert [one.token_id for one in answer.logprobs] == list(answer.token_ids)
    assert [one.top for one in answer.logprobs] == [[(token, -0.25)] for token in answer.token_ids]


def test_on_an_event_loop(frontend, rank):
    async def both():
        waiters = [AsyncWaiter(frontend, start(frontend)) for _ in range(2)]
        return await asyncio.gather(*(waiter.completion() for waiter in waiters))

    assert [answer.text for answer in asyncio.run(both())] == ["42", "42"]


def test_abort_and_leaving(frontend, rank):
    rank.hold.set()
    kept = Waiter(frontend, start(frontend, request_id="kept"))
    Waiter(frontend, start(frontend, request_id="left")).close()
    left = Waiter(frontend, start(frontend, request_id="left-later"))
    wait_until(lambda: len(rank.seen) >= 2)
    left.close()
    assert frontend.abort("kept")
    assert not frontend.abort("never")
    assert kept.completion().finish_reason == "abort"
    assert frontend.abort((early := Waiter(frontend, start(frontend, request_id="early")))._request.request_id)
    assert early.completion().finish_reason == "abort"
    wait_until(lambda: {"/4/kept", "/10/left-later"} <= set(rank.aborted))
    assert len(frontend) == 0


def test_a_request_whose_id_begins_like_one_that_is_aborted_goes_on(frontend, rank):
    rank.hold.set()
    names = [f"{number}" for number in (1, 10, 11, 100)]
    waiters = [Waiter(frontend, start(frontend, request_id=name)) for name in names]
    wait_until(lambda: len(rank.seen) == len(names))
    assert frontend.abort("1")
    assert waiters[0].completion().finish_reason == "abort"
    rank.hold.clear()
    assert [one.completion().text for one in waiters[1:]] == ["42"] * 3


def test_what_is_refused(frontend, rank):
    for prompt, params, text in [
        ("", {}, "the prompt is empty"),
        ([99], {}, "token ids are integers from 0 to 15"),
        ([5] * 2040, {}, "room for 2039 in the KV cache"),
        ([5] * 2000, {"max_new_tokens": 100}, "together at most 2048"),
    ]:
        with pytest.raises(RequestError, match=text):
            ask(frontend, prompt, **params)
    with pytest.raises(RequestError, match="takes no images"):
        frontend.prepare("a", SamplingParams(), [b""])
    rank.hold.set()
    waiter = Waiter(frontend, start(frontend, request_id="r0"))
    with pytest.raises(RequestError, match="'r0' is in use"):
        start(frontend, request_id="r0")(print)
    waiter.close()


def test_parameters_of_sglangs_own(frontend, rank):
    assert ask(frontend, temperature=0.5, extra={"min_p": 0.1, "json_schema": '{"type": "object"}'}).text == "42"
    sampling = rank.seen[-1].sampling_params
    assert (sampling.min_p, sampling.temperature, sampling.json_schema) == (0.1, 0.5, '{"type": "object"}')
    for extra, text in [
        ({"min_q": 0.1}, "no sampling parameter 'min_q'; did you mean 'min_p'"),
        ({"min_p": "little"}, "min_p = 'little': expected `float`"),
        ({"min_p": 7}, r"min_p must be in \[0, 1\]"),
    ]:
        with pytest.raises(RequestError, match=text):
            ask(frontend, extra=extra)


def test_as_many_as_come(frontend, rank):
    """SGLang queues them: what the other engine takes at most (here 8) does not count."""
    rank.hold.set()
    waiters = [Waiter(frontend, start(frontend)) for _ in range(40)]
    wait_until(lambda: len(rank.seen) == 40)
    rank.hold.clear()
    assert {waiter.completion().text for waiter in waiters} == {"42"}


def test_a_lost_group_ends_requests_at_once_and_a_new_one_serves(frontend, rank):
    rank.hold.set()
    waiter = Waiter(frontend, start(frontend))
    wait_until(lambda: rank.seen)
    began = time.monotonic()
    frontend.down(LOST)
    with pytest.raises(RequestFailed, match="was lost: LaunchError F07"):
        waiter.completion()
    assert time.monotonic() - began < patient(1.0)
    with pytest.raises(RequestFailed, match="not ready: LaunchError F07"):
        ask(frontend)
    rank.hold.clear()
    frontend.up(OFFER, RESOLVED)
    assert ask(frontend).text == "42"
    assert not frontend.side.manager.rid_to_state


def test_a_group_that_answers_wrongly_is_a_failed_launch(frontend, rank, monkeypatch):
    monkeypatch.setattr(rank, "_tokens", lambda message: [5])
    with pytest.raises(LaunchError, match="4 tokens were asked for") as caught:
        frontend.up(OFFER, RESOLVED)
    assert caught.value.code == "F12"


def test_a_loss_during_the_first_request_does_not_keep_the_next_group_waiting(frontend, rank):
    rank.hold.set()
    frontend.down(LOST, rebuilding=True)
    first = Background(lambda: frontend.up(OFFER, RESOLVED))
    wait_until(lambda: rank.seen)
    waiter = Waiter(frontend, start(frontend))
    frontend.down(LOST, rebuilding=True)
    assert first.done(patient(1.0))
    with pytest.raises(LaunchError, match=r"the first request failed: .*rank 1 is lost"):
        first.result()
    rank.hold.clear()
    frontend.up(OFFER, RESOLVED)
    assert waiter.completion().text == "42"
    assert not frontend.side.manager.rid_to_state


@pytest.mark.parametrize("until", ["_await_side", "_probe"])
def test_ranks_that_are_lost_before_they_were_asked_are_not_taken(frontend, rank, monkeypatch, until):
    """What the driver's side still waits for then, or has just waited for."""
    go_on, reached, step = threading.Event(), threading.Event(), getattr(frontend, until)

    def step_later(*arguments):
        reached.set()
        assert go_on.wait(10)
        step(*arguments)

    monkeypatch.setattr(frontend, until, step_later)
    frontend.down(LOST, rebuilding=True)
    late = Background(lambda: frontend.up(OFFER, RESOLVED))
    assert reached.wait(10)
    frontend.down(LOST, rebuilding=True)
    go_on.set()
    with pytest.raises(LaunchError, match="the ranks were lost"):
        late.result(5)
    assert (frontend._up, frontend._rebuilding, bool(frontend.side.replay.holding)) == (False, True, True)
    assert rank.seen == []


def test_nothing_is_left(frontend, rank):
    before = {thread.name for thread in threading.enumerate()}
    policy = asyncio.get_event_loop_policy()
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)]
    one = SglangFrontend(CONFIG)
    one.begin(RESOLVED)
    place_ranks(one)
    folder, process = one._folder.path, one._detokenizer
    with ScriptedRank(one.sockets):
        one.up(OFFER, RESOLVED)
        one.close()
        one.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    assert {thread.name for thread in threading.enumerate()} <= before
    assert asyncio.get_event_loop_policy() is policy
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)] == handlers


def test_what_cannot_work_ends_the_launch_early(monkeypatch):
    monkeypatch.setattr(frontends, "published", Published())  # no engine of the other tests is in the way
    config = CONFIG.override("model.tokenizer=/nowhere")
    one = SglangFrontend(config)
    one.begin(replace(RESOLVED, config=config))
    try:
        place_ranks(one, config)
        with pytest.raises(ConfigError, match="cannot load its tokenizer") as caught:
            wait_until(one.raise_if_failed, 90)  # which the driver asks while the ranks load
        assert caught.value.key == "model.tokenizer"
        with pytest.raises(ConfigError):
            one.raise_if_failed()
    finally:
        one.close()
