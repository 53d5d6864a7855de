"""Requests of SGLang's tokenizer manager that go on in another group; over a rank that the test plays."""

from __future__ import annotations

import asyncio
import functools
import threading
from array import array
from dataclasses import replace
from types import SimpleNamespace

import pytest

from raylaunch.config import LaunchConfig
from raylaunch.errors import RequestFailed
from raylaunch.frontends.answers import Waiter, joined
from raylaunch.frontends.base import Prepared
from raylaunch.frontends.requests import Chunk
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.model.tokenizer import load_tokenizer
from raylaunch.sglang.frontend import SglangFrontend
from raylaunch.sglang.loop import Loop
from raylaunch.sglang.replay import Replay, SecondPart, continued, obstacle
from tests.sglang.conftest import CONFIG, LOST, RESOLVED, needs_sglang, place_ranks, start
from tests.sglang.scripted_rank import OFFER, ScriptedRank
from tests.waiting import wait_until

NOTHING = {
    "max_new_tokens": 9, "min_new_tokens": 4, "stop_strs": [], "stop_str_max_len": 0, "no_stop_trim": False,
    "skip_special_tokens": True, "frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0,
}  # fmt: skip


def request(ids=(1, 2), sampling=(), **fields):
    return SimpleNamespace(
        input_ids=array("q", ids), sampling_params=SimpleNamespace(**NOTHING | dict(sampling)),
        logprob_start_len=0, **fields,
    )  # fmt: skip


@functools.cache
def tokenizer():
    return load_tokenizer(LaunchConfig.default())


# ---- what a request becomes


def test_limits_count_over_both_parts():
    first = request()
    again = continued(first, [5, 6])
    assert (list(again.input_ids), again.sampling_params.max_new_tokens) == ([1, 2, 5, 6], 7)
    assert (again.sampling_params.min_new_tokens, again.logprob_start_len) == (2, -1)
    assert continued(first, [3] * 6).sampling_params.min_new_tokens == 0
    assert continued(first, []) is first
    assert (list(first.input_ids), first.sampling_params.max_new_tokens) == ([1, 2], 9), "it may be lost again"


@pytest.mark.parametrize(
    ("made", "fresh", "begun"),
    [
        (request(), "", ""),
        (request(sampling={"sampling_seed": 5}), "", ""),
        (request(sampling={"json_schema": "{}"}), "", "json_schema"),
        (request(sampling={"stop_regex_strs": ["a+"]}), "", "stop_regex"),
        (request(sampling={"repetition_penalty": 1.1}), "", "repetition_penalty"),
        (request(custom_logit_processor="x"), "", "custom_logit_processor"),
        (request(return_hidden_states=True), "", "return_hidden_states"),
        (request(mm_inputs=object()), "mm_inputs", "mm_inputs"),
        (request(session_id="s"), "session_id", "session_id"),
    ],
)
def test_what_cannot_go_on(made, fresh, begun):
    for has_output, name in ((False, fresh), (True, begun)):
        assert obstacle(made, has_output) == (f"with {name} a request cannot go on in another group" if name else "")


class Bytes:
    """A tokenizer of which each token is a byte."""

    is_fast = True

    def decode(self, ids, **_):
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize("cut", range(1, 11))
def test_the_text_goes_on_in_the_middle_of_a_character(cut):
    text = "aé€😀b"
    ids = list(text.encode())
    shown = bytes(ids[:cut]).decode("utf-8", "ignore")
    second = SecondPart(request([100]), ids[:cut], shown, Bytes())
    parts = [second.push([one], None)[1] for one in ids[cut:]] + [second.push([], {"type": "length"})[1]]
    assert shown + "".join(parts) == text


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("cut", range(1, 5))
def test_a_stop_string_across_the_loss(cut, trim):
    """The ranks find the one that begins behind the loss, and we the one that begins before it. A stream has shown its
    beginning by then, as SGLang's do."""
    ids, begins_before = list(b"12+30=42"), cut > 2
    sampling = {"stop_strs": ["+30"], "stop_str_max_len": 3, "no_stop_trim": not trim}
    shown = bytes(ids[:cut]).decode()
    second = SecondPart(request([100], sampling), ids[:cut], shown, Bytes())
    stop = {"type": "stop", "matched": "+30"}
    taken = [second.push([one], None if begins_before or one != ord("0") else stop) for one in ids[cut:5]]
    assert [reason for *_, reason in taken] == [None] * (len(taken) - 1) + [stop]
    assert shown + "".join(text for _, text, _ in taken) == ("12+3" if trim else "12+30")


def test_the_token_that_ends_an_answer_is_no_text():
    second = SecondPart(request([100]), list(b"4"), "4", Bytes())
    assert second.push([ord("2"), 7], {"type": "stop", "matched": 7}) == (
        [ord("2"), 7], "2", {"type": "stop", "matched": 7},
    )  # fmt: skip


# ---- at several replicas, over managers that only send


class Manager:
    """What a replay needs of SGLang's."""

    def __init__(self):
        self.rid_to_state, self.sent = {}, []
        self._dispatch_to_scheduler = self.sent.append
        self._handle_batch_output = self._result_dispatcher = None


def replica():
    one, manager = SglangFrontend(CONFIG), Manager()
    replay = Replay(manager, CONFIG.recovery, lambda *_, **__: None)
    one.side = SimpleNamespace(manager=manager, replay=replay, patient=set())
    return one


def test_requests_of_a_lost_replica_are_shared_out_and_count_where_they_are():
    lost, *others = (replica() for _ in range(3))
    side = lost.side
    side.replay.others = lambda: [one.side.replay for one in sorted(others, key=len)]
    side.patient = {object(), object()}
    for number in range(4):  # two of which are of one caller
        side.manager.rid_to_state[f"r{number}"] = SimpleNamespace(output_ids=[])
        side.replay._sent[f"r{number}"] = request(time_stats=None, wrap_pickle_fields=lambda: None)
    side.replay.hold("rank 1 is lost")
    assert [len(one.side.manager.sent) for one in others] == [2, 2]
    assert [len(one) for one in (lost, *others)] == [0, 2, 2]
    assert all(one.busy() for one in others), "no shape is verified beside them"
    side.replay._drop("r0")
    assert sorted(len(one) for one in others) == [1, 2]


@pytest.mark.parametrize("sent", [False, True])
def test_an_abort_ends_what_the_ranks_have_not_been_sent_too(sent):
    one, heard, asked = replica(), [], []

    async def never(*_):
        await asyncio.sleep(60)
        yield {}

    async def ask():
        one.runs, one._up = Loop(asyncio.get_running_loop()), True
        one.side.input_of = lambda *_: SimpleNamespace(sent=sent)
        one.side.stream, one.side.abort, one.side.manager.incremental_streaming_output = never, asked.append, False
        request = one.submit(Prepared([1], SamplingParams()), heard.append, "a")
        await asyncio.sleep(0.05)
        assert one.abort("a")
        await asyncio.sleep(0.05)
        running = not request.task.done()
        request.task.cancel()
        return running

    assert asyncio.run(ask()) == sent
    assert (heard, asked) == (([], ["/1/a"]) if sent else ([Chunk("a", "", (), "abort")], []))


def test_an_answer_that_cannot_be_made_text_again_keeps_no_other_from_going_on():
    one, failed = replica(), []
    manager, replay = one.side.manager, one.side.replay
    replay._fail = lambda request_id, reason: failed.append((request_id, reason))
    manager.server_args, manager.tokenizer = SimpleNamespace(skip_tokenizer_init=False), Bytes()
    for name, given in (("a", [-1]), ("b", [ord("4")])):  # the first is no byte
        manager.rid_to_state[name] = SimpleNamespace(output_ids=given, get_text=lambda: "")
        replay._sent[name] = request(time_stats=None, wrap_pickle_fields=lambda: None)
    replay.holding = "rank 1 is lost"
    replay.resume()
    assert [list(sent.input_ids) for sent in manager.sent] == [[1, 2, ord("4")]]
    assert [(name, reason.partition(":")[0]) for name, reason in failed] == [
        ("a", "rank 1 is lost; it cannot go on")
    ]  # fmt: skip


def test_a_request_that_comes_just_when_the_group_is_lost_for_good_is_told():
    one, heard = replica(), []
    one._up, one.runs = True, SimpleNamespace(soon=lambda *_: None)
    one.side.manager.incremental_streaming_output, one.side.lose = False, lambda *_, **__: None
    add, losing = one._requests.add, threading.Thread(target=lambda: one.down(LOST))

    def lose_before(request):
        losing.start()
        losing.join(0.2)  # it may wait until the request is there
        add(request)

    one._requests.add = lose_before
    one.submit(Prepared([1], SamplingParams()), heard.append, "a")
    losing.join(5)
    assert [str(error) for error in heard] == [f"request a was lost: {LOST.headline()}"]
    assert len(one) == 0


@needs_sglang
def test_what_comes_behind_a_stop_string_across_the_loss_does_not_count():
    """Ranks say many tokens at a time to who waits for the whole answer."""
    replay, stops = replica().side.replay, {"stop_strs": ["+30"], "stop_str_max_len": 3}
    replay._seconds["a"] = SecondPart(request([100], stops), list(b"12+"), "12+", Bytes())
    ids = list(b"30=42")
    outputs = SimpleNamespace(
        rids=["other", "a"], finished_reasons=[None, None], output_ids=[[7], ids], output_strs=["", "30=42"],
        prompt_tokens=[1, 4], completion_tokens=[1, 5], cached_tokens=[0, 4],
        input_token_logprobs_val=[[-0.5], [-0.5]], output_token_logprobs_val=[[-0.25], [-0.25] * 5],
        output_token_logprobs_idx=[[7], ids], output_top_logprobs_val=None,
    )  # fmt: skip
    replay._mend(outputs)
    assert outputs.output_ids == outputs.output_token_logprobs_idx == [[7], list(b"30")]
    assert outputs.finished_reasons == [None, {"type": "stop", "matched": "+30"}]
    assert outputs.completion_tokens == [1, 5], "of which three were there before"
    assert outputs.output_token_logprobs_val == [[-0.25], [-0.25] * 2]
    assert outputs.input_token_logprobs_val == [[-0.5], []]
    assert [one.rid for one in replay._manager.sent] == ["a"], "the ranks are told to end it"


# ---- over SGLang's tokenizer manager and detokenizer


def begin(frontend, prompt, **params):
    """A request and the chunks that have come, on a thread."""
    waiter, got = Waiter(frontend, start(frontend, prompt, **params)), []

    def run():
        try:
            got.extend(iter(waiter))
        except RequestFailed as error:
            got.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, got, waiter


def scripted(frontend, answer, prompt):
    """A rank that says ``answer`` and its end, also to one who has a part of it already."""
    rank = ScriptedRank(frontend.sockets, lambda ids: tokenizer().decode(ids))
    known = len(tokenizer()(prompt)["input_ids"])
    whole = [*tokenizer()(answer)["input_ids"], rank.eos]
    rank.script = lambda ids, _: whole[len(ids) - known :] if len(ids) >= known else [5] * 9
    return rank


def cut_off(rank, frontend, waiter, tokens):
    """Waits until so many tokens of a request have come, the last of them from this rank."""
    name, states = waiter._request.rid, frontend.side.manager.rid_to_state
    wait_until(lambda: any(one.rid == name for one in rank.seen) and len(states[name].output_ids) >= tokens)


def ask_over_losses(frontend, cuts, **params):
    """An answer of 14 tokens that is cut off behind each of ``cuts`` tokens, and how often it was sent to ranks."""
    prompt, answer = "12+30=", "42+17=59+3=62"
    sent = 0
    for at, cut in enumerate([*cuts, None]):
        with scripted(frontend, answer, prompt) as rank:
            rank.most = 1 << 30 if cut is None else cut - (cuts[at - 1] if at else 0)
            frontend.up(OFFER, RESOLVED)
            if at == 0:
                thread, got, waiter = begin(frontend, prompt, **params)
            if cut is not None:
                wait_until(lambda: any(len(one.input_ids) >= 6 for one in rank.seen))
                state = frontend.side.manager.rid_to_state
                name = waiter._request.rid
                wait_until(lambda cut=cut, state=state, name=name: len(state[name].output_ids) >= cut)
                frontend.down(LOST, rebuilding=True)
            else:
                thread.join(20)
                assert not thread.is_alive()
            sent += sum(len(one.input_ids) >= 6 for one in rank.seen)
    return got, sent


@pytest.mark.slow
@needs_sglang
@pytest.mark.parametrize("cuts", [[1], [5], [3, 8], [2, 3, 12]])
def test_an_answer_goes_on_as_if_nothing_had_been_lost(frontend, cuts):
    before = frontend.continued
    whole, _ = ask_over_losses(frontend, [], max_new_tokens=20, logprobs=2)
    assert frontend.continued == before
    got, sent = ask_over_losses(frontend, cuts, max_new_tokens=20, logprobs=2)
    assert sent == len(cuts) + 1
    assert frontend.continued == before + len(cuts)
    assert replace(joined(got, 6), request_id="") == replace(joined(whole, 6), request_id=""), (
        "text, tokens, log probabilities, and why it ended"
    )
    frontend.down(LOST)


@pytest.mark.slow
@needs_sglang
def test_what_cannot_go_on_ends_at_the_loss_and_says_why(frontend):
    with scripted(frontend, "42+17=59", "12+30=") as rank:
        frontend.up(OFFER, RESOLVED)
        rank.most = 3
        thread, got, waiter = begin(frontend, "12+30=", max_new_tokens=20, extra={"regex": "[0-9+=]*"})
        state = frontend.side.manager.rid_to_state
        cut_off(rank, frontend, waiter, 3)
        frontend.down(LOST, rebuilding=True)
        thread.join(10)
    assert "rank 1 is lost; with regex a request cannot go on in another group" in str(got[-1])
    assert state == {}
    frontend.down(LOST)


@pytest.mark.slow
@needs_sglang
def test_those_that_come_meanwhile_wait_and_can_be_aborted(frontend):
    before = frontend.continued
    with scripted(frontend, "42", "12+30="):
        frontend.up(OFFER, RESOLVED)
    frontend.down(LOST, rebuilding=True)
    waits, aborted = begin(frontend, "12+30=", max_new_tokens=20), begin(frontend, "12+30=", max_new_tokens=20)
    wait_until(lambda: len(frontend.side.replay._fresh) == 2)
    assert frontend.abort(aborted[2]._request.request_id)
    aborted[0].join(10)
    assert aborted[1][-1].finish_reason == "abort"
    with scripted(frontend, "42", "12+30="):
        frontend.up(OFFER, RESOLVED)
        waits[0].join(10)
        assert "".join(one.text for one in waits[1]) == "42"
    frontend.down(LOST)
    assert frontend.continued == before, "no group had seen them"
    assert frontend.side.replay._sent == {}


@pytest.mark.slow
@needs_sglang
@pytest.mark.parametrize("leaves", [False, True])
def test_an_abort_that_was_sent_to_ranks_that_are_lost_is_not_forgotten(frontend, leaves):
    """Nor that a client has left."""
    got = []
    with scripted(frontend, "42+17=59", "12+30=") as rank:
        frontend.up(OFFER, RESOLVED)
        rank.most, state = 3, frontend.side.manager.rid_to_state
        request = start(frontend, "12+30=", "a", max_new_tokens=20)(got.append)
        wait_until(lambda: request.rid in state and len(state[request.rid].output_ids) >= 3)
        rank.stopped.set()
        frontend.forget(request) if leaves else frontend.abort("a")
        frontend.runs.submit(asyncio.sleep(0)).result(5)
        frontend.down(LOST, rebuilding=True)
        wait_until(lambda: not state)
    with scripted(frontend, "42+17=59", "12+30=") as rank:
        frontend.up(OFFER, RESOLVED)
        assert all(one.rid != request.rid for one in rank.seen)
    wait_until(lambda: leaves or got[-1].finish_reason == "abort")
    frontend.down(LOST)


@pytest.mark.slow
@needs_sglang
def test_what_is_sent_to_ranks_that_are_gone_reaches_the_next_ones_once(frontend):
    """They have died, and nobody knows yet."""
    with ScriptedRank(frontend.sockets):
        frontend.up(OFFER, RESOLVED)
    waiter, states = (
        Waiter(frontend, start(frontend, request_id="a", max_new_tokens=3)),
        frontend.side.manager.rid_to_state,
    )
    wait_until(lambda: getattr(states.get("/1/a"), "sent", False))
    frontend.down(LOST, rebuilding=True)
    with ScriptedRank(frontend.sockets) as rank:
        rank.most = 0  # of the probe it gives out more
        frontend.up(OFFER, RESOLVED)
        wait_until(lambda: "/1/a" in [one.rid for one in rank.seen])
        rank.most = 1 << 30
        assert waiter.completion().token_ids == (5, 5, 5)
        assert [one.rid for one in rank.seen].count("/1/a") == 1
    frontend.down(LOST)


# ---- at another replica


@pytest.fixture
def beside(frontend):
    """The frontend of another replica, on the same loop."""
    one = SglangFrontend(CONFIG)
    one.loop = frontend.loop
    one.begin(RESOLVED)
    try:
        place_ranks(one)
        yield one
    finally:
        frontend.others = one.others = lambda: ()
        one.close()
        frontend.down(LOST)


@pytest.mark.slow
@needs_sglang
@pytest.mark.parametrize("rebuilding", [True, False])
def test_an_answer_goes_on_at_another_replica_and_back(frontend, beside, rebuilding):
    """Beside requests of the other's own; back once that one is lost too and the first has a group again."""
    prompt, answer, before = "12+30=", "42+17=59+3=62", frontend.continued
    whole, _ = ask_over_losses(frontend, [], max_new_tokens=20, logprobs=2)
    frontend.others, beside.others = (lambda: [beside]), (lambda: [frontend])
    with scripted(frontend, answer, prompt) as first, scripted(beside, answer, prompt) as second:
        frontend.up(OFFER, RESOLVED)
        beside.up(OFFER, RESOLVED)
        first.most, second.most = 3, 5
        thread, got, waiter = begin(frontend, prompt, max_new_tokens=20, logprobs=2)
        cut_off(first, frontend, waiter, 3)
        own, theirs, its_waiter = begin(beside, prompt, max_new_tokens=20)
        cut_off(second, beside, its_waiter, 5)
        frontend.down(LOST, rebuilding=rebuilding)
        cut_off(second, frontend, waiter, 8)
        assert list(beside.side.replay.guests) == [waiter._request.rid]
    with scripted(frontend, answer, prompt) as third:
        frontend.others, third.most = (lambda: ()), 1 << 30
        frontend.up(OFFER, RESOLVED)
        beside.down(LOST, rebuilding=True)
        for one in (thread, own):
            one.join(20)
            assert not one.is_alive()
    assert replace(joined(got, 6), request_id="") == replace(joined(whole, 6), request_id="")
    assert "".join(one.text for one in theirs) == answer
    assert (frontend.continued - before, beside.continued) == (2, 1)
    for each in (frontend, beside):
        assert (each.side.replay.guests, each.side.replay._hosts) == ({}, {})


@pytest.mark.slow
@needs_sglang
def test_who_leaves_is_aborted_where_the_request_is(frontend, beside):
    frontend.others = lambda: [beside]
    with scripted(frontend, "42+17=59", "12+30=") as first, scripted(beside, "42+17=59", "12+30=") as second:
        frontend.up(OFFER, RESOLVED)
        beside.up(OFFER, RESOLVED)
        first.most, second.most = 2, 2
        thread, got, waiter = begin(frontend, "12+30=", max_new_tokens=20)
        cut_off(first, frontend, waiter, 2)
        frontend.down(LOST, rebuilding=True)
        cut_off(second, frontend, waiter, 4)
        late, heard, _ = begin(frontend, "12+30=", max_new_tokens=1)  # meanwhile
        late.join(10)
        assert heard[-1].finish_reason == "length"
        assert frontend.abort(waiter._request.request_id)
        thread.join(10)
        assert got[-1].finish_reason == "abort"
        assert waiter._request.rid in second.aborted
    assert beside.side.replay.guests == {}


@pytest.mark.slow
@needs_sglang
@pytest.mark.parametrize("refusal", ["", "The request queue is full."])
def test_an_end_that_another_replica_says_beside_its_outputs_is_heard(frontend, beside, refusal):
    """Of a request that waits in its queue and is aborted, or that it does not take."""
    frontend.others = lambda: [beside]
    with scripted(frontend, "42+17=59", "12+30=") as first, scripted(beside, "42+17=59", "12+30=") as second:
        frontend.up(OFFER, RESOLVED)
        beside.up(OFFER, RESOLVED)
        first.most, second.refusal = 2, refusal
        second.queues.set()
        thread, got, waiter = begin(frontend, "12+30=", max_new_tokens=20)
        cut_off(first, frontend, waiter, 2)
        frontend.down(LOST, rebuilding=True)
        name = waiter._request.rid
        wait_until(lambda: any(one.rid == name for one in second.seen))
        assert refusal or frontend.abort(waiter._request.request_id)
        thread.join(5)
        assert not thread.is_alive()
    assert refusal in str(got[-1]) if refusal else got[-1].finish_reason == "abort"
    assert not frontend.busy()
    for each in (frontend, beside):
        assert (each.side.replay._sent, each.side.replay.guests, each.side.replay._hosts) == ({}, {}, {})


@pytest.mark.slow
@needs_sglang
def test_a_replica_that_is_lost_for_good_hands_on_what_can_go_on(frontend, beside):
    frontend.others = lambda: [beside]
    with scripted(frontend, "42+17=59", "12+30=") as first, scripted(beside, "42+17=59", "12+30="):
        frontend.up(OFFER, RESOLVED)
        beside.up(OFFER, RESOLVED)
        first.most = 2
        plain, structured = (
            begin(frontend, "12+30=", max_new_tokens=20, extra=extra) for extra in ({}, {"regex": "[0-9+=]*"})
        )
        for one in (plain, structured):
            cut_off(first, frontend, one[2], 2)
        frontend.down(LOST)
        for one in (plain, structured):
            one[0].join(10)
            assert not one[0].is_alive()
    assert "".join(one.text for one in plain[1]) == "42+17=59"
    assert "with regex a request cannot go on" in str(structured[1][-1])
