"""The reference engine's frontend, against a rank 0 that the test plays on the real sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from raylaunch_actors.reference.channel import RankZeroSockets

from raylaunch import LaunchConfig
from raylaunch.errors import LaunchError, RaylaunchError, RequestError, RequestFailed
from raylaunch.frontends.base import Prepared
from raylaunch.frontends.reference import ReferenceFrontend
from raylaunch.frontends.requests import Chunk
from raylaunch.model.shape import ModelShape
from raylaunch.resolved import launch_of
from raylaunch.sampling import SamplingParams
from raylaunch.wire import Abort, Output, Submit

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
