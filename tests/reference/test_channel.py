"""The sockets: every message arrives, in order, and only for those who hold the keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest
import zmq
from raylaunch_actors.reference.channel import FollowerSocket, Offer, RankZeroSockets, connect

from raylaunch import wire
from raylaunch.errors import RankFault
from raylaunch.wire import Abort, Output, Sampling, SequencePart, StepPlan, Stop, Submit
from tests.busy import patient

PLAN = StepPlan("prefill", 8, [1, 2], [0, 1], [SequencePart(0, 2, 5, 0, True)])
NEVER = threading.Event()


@pytest.fixture
def opened() -> Iterator[tuple[RankZeroSockets, Offer]]:
    sockets = RankZeroSockets("127.0.0.1", 3)
    yield sockets, sockets.open()
    sockets.close()
    sockets.close()


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def receive(sockets: RankZeroSockets, seconds: float = 5.0) -> object:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (message := sockets.receive(wait=True)) is not None:
            return message
    return None


def test_round_trip(opened: tuple[RankZeroSockets, Offer], context: zmq.Context) -> None:
    sockets, offer = opened
    followers = [FollowerSocket(rank, offer) for rank in (1, 2)]
    for follower in followers:
        follower.open()
    requests = connect(context, zmq.PUSH, offer.requests, offer)
    outputs = connect(context, zmq.PULL, offer.outputs, offer)
    messages = [Submit("a", [1, 2, 3], Sampling(seed=2**40, stop_token_ids=[7])), Abort("a"), Stop()]
    for message in messages:
        requests.send(wire.encode(message))
    assert [receive(sockets) for _ in messages] == messages
    assert sockets.receive(wait=False) is None
    batch = [Output("a", [1]), Output("b", [], "error", "why")]
    sockets.send_outputs(batch, NEVER)
    assert wire.decode_outputs(outputs.recv()) == batch
    for number in range(50):
        sockets.send_plan(StepPlan("decode", 2, [number], [0], []), NEVER)
    sockets.send_plan(PLAN, NEVER)
    sockets.send_plan(Stop(), NEVER)
    for follower in followers:
        for number in range(50):
            plan = follower.receive(NEVER)
            assert isinstance(plan, StepPlan)
            assert plan.tokens == [number]
        assert follower.receive(NEVER) == PLAN
        assert follower.receive(NEVER) == Stop()
        follower.close()


def test_without_the_right_keys_nothing_goes_in_or_out(
    opened: tuple[RankZeroSockets, Offer], context: zmq.Context
) -> None:
    sockets, offer = opened
    public, secret = zmq.curve_keypair()
    other_server = zmq.curve_keypair()[0]
    strangers = [
        replace(offer, client_public=public, client_secret=secret),  # knows the server's key only
        replace(offer, server_key=other_server),  # knows the client's key only
    ]
    pulls, pushes = [], []
    for stranger in strangers:
        pushes.append(connect(context, zmq.PUSH, offer.requests, stranger))
        pulls += [connect(context, zmq.PULL, address, stranger) for address in (offer.outputs, offer.plans[1])]
    for kind, address in ((zmq.PUSH, offer.requests), (zmq.PULL, offer.outputs), (zmq.PULL, offer.plans[1])):
        plain = context.socket(kind)  # knows none
        plain.linger = 0
        plain.connect(address)
        (pushes if kind == zmq.PUSH else pulls).append(plain)
    for push in pushes:
        push.send(wire.encode(Stop()))
    assert receive(sockets, 0.6) is None
    stop = threading.Event()
    stop.set()
    for _ in range(3):  # nobody is connected, so these are dropped after a moment, not given to a stranger
        sockets.send_outputs([Output("secret", [1])], stop)
    assert all(pull.poll(50) == 0 for pull in pulls)
    # Who has the keys is still served.
    friend = connect(context, zmq.PULL, offer.outputs, offer)
    sockets.send_outputs([Output("a", [1])], NEVER)
    assert wire.decode_outputs(friend.recv()) == [Output("a", [1])]
    assert all(pull.poll(50) == 0 for pull in pulls)


def test_garbage_is_an_error_for_the_reader_to_drop(
    opened: tuple[RankZeroSockets, Offer], context: zmq.Context
) -> None:
    sockets, offer = opened
    requests = connect(context, zmq.PUSH, offer.requests, offer)
    requests.send(b"\xc1 garbage")
    requests.send(wire.encode(Abort("a")))
    with pytest.raises(msgspec.DecodeError):
        receive(sockets)
    assert receive(sockets) == Abort("a")


def test_a_follower_stops_within_a_second_and_idles_for_nothing(
    opened: tuple[RankZeroSockets, Offer],
) -> None:
    follower = FollowerSocket(1, opened[1])
    follower.open()
    stop = threading.Event()
    used = time.thread_time()  # of this thread: other tests' threads may live on in the process
    threading.Timer(0.7, stop.set).start()
    started = time.monotonic()
    assert follower.receive(stop) is None
    assert 0.7 <= time.monotonic() - started < patient(1.5)
    assert time.thread_time() - used < 0.1
    follower.close()


def test_an_address_that_cannot_be_bound_is_named() -> None:
    sockets = RankZeroSockets("192.0.2.1", 1)
    with pytest.raises(RankFault, match=r"cannot bind a socket on 192\.0\.2\.1"):
        sockets.open()
    sockets.close()
