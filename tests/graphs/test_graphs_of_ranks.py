"""Graphs with all-reduces between real processes: the whole life cycle."""

from __future__ import annotations

import contextlib
import time

import pytest
import torch
from raylaunch_actors.communicator.base import pending_inputs, register_inputs, registered_inputs
from raylaunch_actors.graphs.context import Mode

from raylaunch.errors import CollectiveAborted, RankFault
from tests.communicator.ranks import Channel, attached, check, over_gloo, run
from tests.graphs.decoder import Engine
from tests.shared_memory import in_dev_shm


@contextlib.contextmanager
def engine_of(channel: Channel, kind: str, **options):
    with contextlib.ExitStack() as stack:
        communicator = stack.enter_context(over_gloo(channel)) if kind == "gloo" else attached(channel)
        engine = Engine(communicator, **options)
        engine.trace(16, 8)
        yield engine
        channel.exchange(None)
        communicator.close()


def life_cycle(channel: Channel, kind: str, dtype: torch.dtype, experts: bool):
    shm = in_dev_shm()
    with engine_of(channel, kind, dtype=dtype, experts=experts) as engine:
        runner, registered = engine.runner(), 0
        for round, shapes in (("prefill", [8, 16]), ("decode", [2])):
            runner.capture(round, shapes, lambda *step: channel.exchange(step))
            registered += register_inputs(engine.communicator, channel.exchange(pending_inputs(engine.communicator)))
        assert registered_inputs(engine.communicator) == registered
        outs = []
        for seed, key in enumerate((("prefill", 16), ("decode", 2), ("prefill", 8), ("prefill", 16))):
            assert engine.same(*key, seed), key
            outs.append(engine.forward(Mode.REPLAY, *key, seed).clone().float())
        assert in_dev_shm() <= shm
        return registered, outs


@pytest.mark.parametrize(
    ("world_size", "dtype", "experts"),
    [
        (2, torch.float32, True),
        pytest.param(2, torch.float32, False, marks=pytest.mark.slow),
        pytest.param(2, torch.bfloat16, False, marks=pytest.mark.slow),
        pytest.param(4, torch.float32, False, marks=pytest.mark.slow),
    ],
)
def test_replay_equals_eager_on_all_ranks(world_size, dtype, experts):
    results = check(run(world_size, life_cycle, "shared-memory", dtype, experts))
    for registered, outs in results:
        assert registered == 6 * 3
        assert all(torch.equal(a, b) for a, b in zip(outs, results[0][1], strict=True))


@pytest.mark.slow
def test_gloo_gives_the_same_bits_as_shared_memory():
    gloo = check(run(2, life_cycle, "gloo", torch.bfloat16, False))
    shared = check(run(2, life_cycle, "shared-memory", torch.bfloat16, False))
    for (registered, a), (_, b) in zip(gloo, shared, strict=True):
        assert registered == 0
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def third_iteration(channel: Channel, kind: str):
    with engine_of(channel, kind, iterations=3) as engine:
        try:
            engine.runner().capture("prefill", [16, 8], lambda *step: channel.exchange(step))
        except RankFault as fault:
            return fault.code, str(fault), pending_inputs(engine.communicator)


@pytest.mark.parametrize("kind", ["shared-memory", pytest.param("gloo", marks=pytest.mark.slow)])
def test_f01_a_third_iteration_is_refused_on_every_rank(kind):
    for code, message, pending in check(run(2, third_iteration, kind)):
        assert code == "F01"
        assert "shape 16" in message
        assert pending == ()


def one_fails(channel: Channel, aborts: bool):
    with engine_of(channel, "shared-memory") as engine:

        def before(round: str, shape: int, iteration: int) -> None:
            channel.exchange(iteration)
            if channel.rank == 1 and (shape, iteration) == (8, 2):
                raise ZeroDivisionError("a kernel failed")

        start = time.monotonic()
        try:
            engine.runner().capture("prefill", [16, 8], before)
        except ZeroDivisionError:
            left_after = time.monotonic() - start
            if aborts:
                engine.communicator.abort()
            return "failed", left_after, pending_inputs(engine.communicator)
        except CollectiveAborted as error:
            return str(error), time.monotonic() - start, pending_inputs(engine.communicator)


def test_f05_a_failure_leaves_at_once_and_its_abort_frees_the_peer():
    peer, failed = check(run(2, one_fails, True))
    assert failed[0] == "failed"
    assert "rank 1 aborted" in peer[0]
    assert failed[1] < 10
    assert peer[1] < 10
    assert failed[2] == peer[2] == ()


def different_shapes(channel: Channel):
    with engine_of(channel, "shared-memory") as engine:
        engine.runner().capture("prefill", [16], lambda *step: None)
        pending = pending_inputs(engine.communicator)
        if channel.rank == 1:  # as if one rank had recorded one fewer
            engine.communicator._calls.calls.pop()
            engine.communicator._calls._inputs.pop()
            pending = pending_inputs(engine.communicator)
        lists = channel.exchange(pending)
        try:
            register_inputs(engine.communicator, lists)
        except RankFault as fault:
            try:
                engine.forward(Mode.REPLAY, "prefill", 16)
            except RankFault as second:
                return fault.code, str(fault), second.code


@pytest.mark.slow
def test_f03_different_lists_register_nothing():
    for code, message, replay in check(run(2, different_shapes)):
        assert (code, replay) == ("F03", "F01")
        assert "prefill/16/piece3#1" in message
