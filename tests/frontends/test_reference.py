"""The reference engine's frontend, against a rank 0 that the test plays on the real sockets."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from raylaunch_actors.reference.channel import RankZeroSockets

from raylaunch import LaunchConfig
from raylaunch.background import Background
from raylaunch.engine import Engine
from raylaunch.engine.health import Condition
from raylaunch.errors import LaunchError, RaylaunchError, RequestError, RequestFailed
from raylaunch.frontends.base import Prepared
from raylaunch.frontends.client import RankZeroClient
from raylaunch.frontends.reference import ReferenceFrontend
from raylaunch.frontends.requests import Chunk, RunningRequest
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.model.shape import ModelShape
from raylaunch.model.tokenizer import load_tokenizer
from raylaunch.model_check import check_model
from raylaunch.resolved import launch_of
from raylaunch.wire import Abort, Output, Submit, TokenLogprob

RESOLVED = replace(launch_of(LaunchConfig.default(), ModelShape("tiny", 2048, 16, 2, 2)), kv_tokens=100)


class Rank:
    """Rank 0's end of the sockets."""

    def __init__(self) -> None:
        self.sockets = RankZeroSockets("127.0.0.1", 1)
        self.offer = self.sockets.open()

    def receive(self) -> Any:
        end = time.monotonic() + 5.0
        while (message := self.sockets.receive(wait=True)) is None:
            assert time.monotonic() < end
        return message

    def submitted(self) -> Submit:
        """The next request; aborts of others are left out."""
        while not isinstance(message := self.receive(), Submit):
            pass
        return message


@pytest.fixture
def two_ranks() -> Iterator[tuple[Rank, Rank]]:
    ranks = Rank(), Rank()
    yield ranks
    for rank in ranks:
        rank.sockets.close()


@pytest.fixture
def rank() -> Iterator[Rank]:
    rank = Rank()
    yield rank
    rank.sockets.close()


@pytest.fixture
def frontend(rank: Rank) -> Iterator[ReferenceFrontend]:
    frontend = ReferenceFrontend(LaunchConfig.default())
    frontend.up(rank.offer, RESOLVED)
    yield frontend
    frontend.close()


def submit(frontend: ReferenceFrontend, request_id: str) -> tuple[Any, list[Chunk | RaylaunchError]]:
    """A running request and the list that its chunks arrive in."""
    arrived: list[Chunk | RaylaunchError] = []
    return frontend.submit(Prepared([1, 2], SamplingParams()), arrived.append, request_id), arrived


def test_a_request_gets_no_token_of_an_earlier_one_with_its_id(rank: Rank, frontend: ReferenceFrontend) -> None:
    left, none = submit(frontend, "a")
    frontend.forget(left)
    _, arrived = submit(frontend, "a")
    first, abort, second = rank.receive(), rank.receive(), rank.receive()
    assert isinstance(first, Submit)
    assert isinstance(second, Submit)
    assert abort == Abort(first.request_id)
    outputs = [Output(first.request_id, [7]), Output(first.request_id, [], "abort")]
    frontend._deliver([*outputs, Output(second.request_id, [8], "stop")])
    assert (none, arrived) == ([], [Chunk("a", "", (8,), "stop")])
    assert len(frontend) == 0


def test_an_abort_names_the_request_that_runs_under_the_id_now(rank: Rank, frontend: ReferenceFrontend) -> None:
    for _ in range(2):
        submit(frontend, "a#0")
        submitted = rank.receive()
        assert frontend.abort("a#0")
        assert rank.receive() == Abort(submitted.request_id)
        frontend._deliver([Output(submitted.request_id, [], "abort")])
    assert not frontend.abort("a#0")


def test_an_abort_does_not_overtake_the_request_that_is_being_sent(
    rank: Rank, frontend: ReferenceFrontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert frontend._client is not None
    send, answers = frontend._client.send, []
    aborting = threading.Thread(target=lambda: answers.append(frontend.abort("a")))

    def abort_before(message: Any) -> None:
        if isinstance(message, Submit):
            aborting.start()
            aborting.join(0.2)  # it may wait until the request is on its way
        send(message)

    monkeypatch.setattr(frontend._client, "send", abort_before)
    submit(frontend, "a")
    aborting.join(5)
    first, second = rank.receive(), rank.receive()
    assert isinstance(first, Submit)
    assert second == Abort(first.request_id)
    assert answers == [True]


def test_an_id_is_free_when_its_caller_hears_the_end_and_not_before(rank: Rank, frontend: ReferenceFrontend) -> None:
    again: list[Any] = []
    first: list[Chunk | RaylaunchError] = []

    def listener(item: Chunk | RaylaunchError) -> None:
        first.append(item)
        again.append(submit(frontend, "a"))

    frontend.submit(Prepared([1], SamplingParams()), listener, "a")
    with pytest.raises(RequestError, match="'a' is in use"):
        submit(frontend, "a")
    frontend._deliver([Output(rank.receive().request_id, [3], "length")])
    assert first == [Chunk("a", "", (3,), "length")]
    assert len(frontend) == len(again) == 1


def closed_loop(item: Chunk | RaylaunchError) -> None:
    raise RuntimeError("Event loop is closed")


def test_a_caller_that_cannot_be_told_does_not_keep_others_from_their_tokens(
    rank: Rank, frontend: ReferenceFrontend
) -> None:
    frontend.submit(Prepared([1], SamplingParams()), closed_loop, "gone")
    _, arrived = submit(frontend, "here")
    gone, here = rank.receive().request_id, rank.receive().request_id
    frontend._deliver([Output(gone, [5]), Output(here, [6], "length")])
    assert arrived == [Chunk("here", "", (6,), "length")]
    assert rank.receive() == Abort(gone)
    assert len(frontend) == 0


def test_a_caller_that_cannot_be_told_of_a_loss_does_not_keep_others_waiting(frontend: ReferenceFrontend) -> None:
    frontend.submit(Prepared([1], SamplingParams()), closed_loop, "gone")
    _, arrived = submit(frontend, "here")
    frontend.down(LaunchError("rank 1 is lost", "F07"))
    (told,) = arrived
    assert isinstance(told, RequestFailed)
    assert str(told) == "request here was lost: LaunchError F07 rank 1 is lost"


# ---- a group that is lost while another is launched in its place

LOST = LaunchError("rank 1 is lost", "F07")


def frontend_of(*recovery: str) -> ReferenceFrontend:
    frontend = ReferenceFrontend(LaunchConfig.default([f"recovery.{one}" for one in recovery]))
    frontend._loading = Background(lambda: load_tokenizer(LaunchConfig.default()))
    return frontend


def text_of(arrived: list[Chunk | RaylaunchError]) -> tuple[str, tuple[int, ...], Any]:
    """Text, tokens and end of an answer."""
    chunks = [one for one in arrived if isinstance(one, Chunk)]
    assert len(chunks) == len(arrived), arrived
    return "".join(one.text for one in chunks), sum((one.token_ids for one in chunks), ()), chunks[-1].finish_reason


def test_a_request_goes_on_in_the_next_group_behind_what_it_has_given_out(two_ranks: tuple[Rank, Rank]) -> None:
    """Tokens, limits and random numbers count over both parts, and each group has a name of its own for it."""
    first, second = two_ranks
    frontend = frontend_of()
    frontend.up(first.offer, RESOLVED)
    arrived: list[Chunk | RaylaunchError] = []
    params = SamplingParams(max_new_tokens=8, temperature=1.0, seed=3, stop_token_ids=(9,), logprobs=0)
    frontend.submit(Prepared([1, 2], params), arrived.append, "a")
    began = first.receive()
    logprobs = [TokenLogprob(token, -0.5, []) for token in (5, 6)]
    frontend._deliver([Output(began.request_id, [5, 6], logprobs=logprobs)])
    frontend.down(LOST, rebuilding=True)
    assert len(frontend) == 1
    frontend.up(second.offer, RESOLVED)
    went_on = second.receive()
    assert went_on.request_id != began.request_id
    assert frontend.continued == 1
    assert (began.prompt, began.sampling.max_new_tokens, began.sampling.drawn) == ([1, 2], 8, 0)
    assert (went_on.prompt, went_on.sampling.max_new_tokens, went_on.sampling.drawn) == ([1, 2, 5, 6], 6, 2)
    assert went_on.sampling.stop_token_ids[0] == 9
    frontend._deliver([Output(began.request_id, [7])])  # of the group that is lost
    frontend._deliver([Output(went_on.request_id, [8], "length", logprobs=[TokenLogprob(8, -0.5, [])])])
    assert text_of(arrived)[1:] == ((5, 6, 8), "length")
    assert [one.token_id for chunk in arrived for one in chunk.logprobs] == [5, 6, 8]  # type: ignore[union-attr]
    frontend.close()


def test_a_text_and_a_stop_string_go_on_across_a_loss(two_ranks: tuple[Rank, Rank]) -> None:
    first, second = two_ranks
    frontend = frontend_of()
    frontend.up(first.offer, RESOLVED)
    tokenizer = frontend.tokenizer
    prompt, ids = tokenizer("1+1=")["input_ids"], tokenizer("12+30=42")["input_ids"]
    for cut in range(1, len(ids)):
        for stop, text in ((), "12+30=42"), (("+30=4",), "12"):
            arrived: list[Chunk | RaylaunchError] = []
            frontend.submit(Prepared(prompt, SamplingParams(stop=stop)), arrived.append, "a")
            name = first.submitted().request_id
            frontend._deliver([Output(name, [one]) for one in ids[:cut]])
            if any(isinstance(one, Chunk) and one.finish_reason for one in arrived):  # it came before the cut
                continue
            frontend.down(LOST, rebuilding=True)
            frontend.up(second.offer, RESOLVED)
            name = second.submitted().request_id
            frontend._deliver([*(Output(name, [one]) for one in ids[cut:-1]), Output(name, ids[-1:], "length")])
            assert text_of(arrived)[0] == text
            first, second = second, first
    frontend.close()


@pytest.mark.parametrize(
    ("replay", "while_rebuilding", "kept"),
    [("true", "wait", "abc"), ("true", "fail", "ab"), ("false", "wait", "bc"), ("false", "fail", "")],
)
def test_which_requests_wait(rank: Rank, replay: str, while_rebuilding: str, kept: str) -> None:
    """One that has given out a token, one that has not, and one that comes when the group is lost."""
    recovery = f"recovery={{replay: {replay}, while_rebuilding: {while_rebuilding}}}"
    engine = Engine(LaunchConfig.default([recovery]))
    frontend = engine.frontend
    frontend.up(rank.offer, RESOLVED)
    engine._shape, engine._supervisor.condition = check_model(engine.config), Condition.READY
    frontend._shape = engine._shape  # type: ignore[attr-defined]
    _, told = submit(frontend, "a")  # type: ignore[arg-type]
    _, fresh = submit(frontend, "b")  # type: ignore[arg-type]
    frontend._deliver([Output(rank.receive().request_id, [5])])  # type: ignore[attr-defined]
    frontend.down(LOST, rebuilding=True)
    engine._supervisor.condition = Condition.REBUILDING
    taken = pytest.raises(RequestFailed, match="not ready") if while_rebuilding == "fail" else contextlib.nullcontext()
    with taken:
        engine.submit(Prepared([1], SamplingParams()), print, "c")
    assert set(frontend._requests._running) == set(kept)  # type: ignore[attr-defined]
    assert [bool(told[1:]), bool(fresh)] == ["a" not in kept, "b" not in kept]
    frontend.close()


def test_waiting_for_a_group_has_an_end(rank: Rank) -> None:
    frontend = frontend_of("give_up_s=0.3")
    frontend.up(rank.offer, RESOLVED)
    _, arrived = submit(frontend, "a")
    frontend.down(LOST, rebuilding=True)
    _, late = submit(frontend, "b")
    end = time.monotonic() + 5
    while not (arrived and late) and time.monotonic() < end:
        time.sleep(0.01)
    for items in (arrived, late):
        assert "rank 1 is lost; no group took its place within 0.3 s" in str(items[0])
    assert len(frontend) == 0
    frontend.close()


def test_those_that_wait_end_when_there_will_be_no_group(rank: Rank, frontend: ReferenceFrontend) -> None:
    _, arrived = submit(frontend, "a")
    frontend.down(LOST, rebuilding=True)
    assert arrived == []
    frontend.down(LaunchError("no node has 1 CPU", "F13"))
    assert str(arrived[0]) == "request a was lost: LaunchError F13 no node has 1 CPU"
    with pytest.raises(RequestFailed, match="not ready"):
        submit(frontend, "b")


def test_one_that_waits_can_be_aborted_and_left(frontend: ReferenceFrontend) -> None:
    left, none = submit(frontend, "a")
    _, aborted = submit(frontend, "b")
    frontend.down(LOST, rebuilding=True)
    frontend.forget(left)
    assert frontend.abort("b")
    assert (none, aborted) == ([], [Chunk("b", "", (), "abort")])
    assert len(frontend) == 0


def test_who_leaves_while_requests_are_sent_again_has_nothing_computed(
    two_ranks: tuple[Rank, Rank], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before his request's turn, and just when it is sent."""
    first, second = two_ranks
    frontend = ReferenceFrontend(LaunchConfig.default())
    frontend.up(first.offer, RESOLVED)
    a, b, _ = (submit(frontend, name)[0] for name in "abc")
    frontend.down(LOST, rebuilding=True)
    send = RankZeroClient.send

    def send_as_they_leave(client: RankZeroClient, message: Any) -> None:
        if isinstance(message, Submit) and message.request_id.startswith("a"):
            frontend.forget(a)
            frontend.forget(b)
        send(client, message)

    monkeypatch.setattr(RankZeroClient, "send", send_as_they_leave)
    frontend.up(second.offer, RESOLVED)
    heard = [second.receive() for _ in range(4)]
    names = {one.request_id for one in heard if isinstance(one, Submit)}
    assert {name[0] for name in names} == {"a", "c"}
    ended = [one.request_id for one in heard[-2:] if isinstance(one, Abort)]
    assert [name[0] for name in ended] == ["a"], "behind the request itself"
    frontend.close()


@pytest.mark.parametrize("ends_by", ["abort", "fail"])
def test_a_request_that_ends_just_when_it_is_sent_again_is_not_computed(
    two_ranks: tuple[Rank, Rank], monkeypatch: pytest.MonkeyPatch, ends_by: str
) -> None:
    """Aborted, or because it has waited for long enough."""
    first, second = two_ranks
    config = LaunchConfig.default(["recovery.give_up_s=0.05"] if ends_by == "fail" else [])
    frontend, end = ReferenceFrontend(config), getattr(RunningRequest, ends_by)
    frontend.up(first.offer, RESOLVED)
    _, arrived = submit(frontend, "a")

    def end_once_it_is_sent(request: RunningRequest, *why: Any) -> None:
        frontend.up(second.offer, RESOLVED)
        end(request, *why)

    monkeypatch.setattr(RunningRequest, ends_by, end_once_it_is_sent)
    frontend.down(LOST, rebuilding=True)
    if ends_by == "abort":
        assert frontend.abort("a")
    sent, ended = second.receive(), second.receive()
    assert ended == Abort(sent.request_id)
    assert len(arrived) == 1
    monkeypatch.undo()
    frontend.close()


@pytest.mark.parametrize("follows", ["the next group", "nothing yet", "the end"])
def test_ranks_that_are_lost_while_the_tokenizer_loads_are_not_taken(
    two_ranks: tuple[Rank, Rank], follows: str
) -> None:
    first, second = two_ranks
    frontend, loaded = ReferenceFrontend(LaunchConfig.default()), threading.Event()
    frontend._loading = Background(loaded.wait)
    late = Background(lambda: frontend.up(first.offer, RESOLVED))
    assert not late.done(0.1)
    if follows == "the end":
        frontend.close()
    else:
        frontend.down(LOST, rebuilding=True)
        _, waits = submit(frontend, "a")
    if follows == "the next group":
        frontend._loading = None
        frontend.up(second.offer, RESOLVED)
    taken = frontend._client
    assert (taken is None) == (follows != "the next group")
    loaded.set()
    with pytest.raises(LaunchError, match="lost before a request was sent"):
        late.result(5)
    assert frontend._client is taken
    assert frontend._rebuilding == (follows == "nothing yet"), "waiting has its end still"
    if follows == "the next group":
        assert second.submitted().request_id.startswith("a")
        assert waits == []
    frontend.close()


@pytest.mark.parametrize("rebuilding", [True, False])
def test_an_abort_that_was_sent_to_ranks_that_are_lost_is_not_forgotten(
    rank: Rank, frontend: ReferenceFrontend, rebuilding: bool
) -> None:
    """Neither another group nor another replica goes on with it."""
    sent: list[Any] = []
    frontend.elsewhere = lambda request: bool(sent.append(request))
    _, arrived = submit(frontend, "a")
    frontend._deliver([Output(rank.receive().request_id, [5])])
    assert frontend.abort("a")
    frontend.down(LOST, rebuilding=rebuilding)
    assert arrived == [Chunk("a", "", (5,)), Chunk("a", "", (), "abort")]
    assert (len(frontend), sent) == (0, [])


@pytest.fixture
def beside(rank: Rank, frontend: ReferenceFrontend) -> Iterator[tuple[Rank, ReferenceFrontend]]:
    """Another replica, to which requests go when the first is lost."""
    other, one = Rank(), ReferenceFrontend(LaunchConfig.default())
    one.up(other.offer, RESOLVED)
    frontend.elsewhere = one.continue_request
    yield other, one
    one.close()
    other.sockets.close()


@pytest.mark.parametrize("rebuilding", [True, False])
def test_a_request_goes_on_at_another_replica(
    rank: Rank, frontend: ReferenceFrontend, beside: tuple[Rank, ReferenceFrontend], rebuilding: bool
) -> None:
    other, one = beside
    _, arrived = submit(frontend, "a")
    began = rank.receive().request_id
    frontend._deliver([Output(began, [5, 6])])
    frontend.down(LOST, rebuilding=rebuilding)
    assert (len(frontend), len(one), frontend.continued) == (0, 1, 1)
    went_on = other.submitted()
    assert went_on.prompt == [1, 2, 5, 6]
    frontend._deliver([Output(began, [7])])  # of the group that is lost
    one._deliver([Output(went_on.request_id, [8], "length")])
    assert text_of(arrived)[1:] == ((5, 6, 8), "length")
    assert len(one) == 0


def test_what_a_replica_has_taken_is_its_own(
    frontend: ReferenceFrontend, beside: tuple[Rank, ReferenceFrontend]
) -> None:
    other, one = beside
    left, none = submit(frontend, "a")
    _, aborted = submit(frontend, "b")
    frontend.down(LOST, rebuilding=True)
    names = [other.submitted().request_id for _ in range(2)]
    frontend.forget(left)  # whoever is asked
    assert one.abort("b")
    assert [other.receive() for _ in range(2)] == [Abort(name) for name in names]
    assert (none, aborted, len(one)) == ([], [], 1)
    one.down(LOST)
    assert aborted == [Chunk("b", "", (), "abort")]


def test_what_another_replica_cannot_take_waits(
    frontend: ReferenceFrontend, beside: tuple[Rank, ReferenceFrontend]
) -> None:
    _, one = beside
    _, own = submit(one, "a")
    _, same = submit(frontend, "a")
    frontend.down(LOST, rebuilding=True)
    assert (len(frontend), len(one), own, same) == (1, 1, [], [])
    one.down(LOST)
    _, late = submit(frontend, "b")
    frontend.down(LOST)
    assert [str(one[0]) for one in (same, late)] == [f"request {one} was lost: {LOST.headline()}" for one in "ab"]
