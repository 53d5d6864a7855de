"""Several communicators as one, with real ones inside: of one rank, and of two processes."""

from __future__ import annotations

import pytest
import torch
from raylaunch_actors.communicator.base import CallLabel, pending_inputs, register_inputs, registered_inputs
from raylaunch_actors.communicator.routed import RoutedAllReduce, routed
from raylaunch_actors.communicator.shared_memory import SharedMemoryAllReduce
from raylaunch_actors.communicator.single import SingleRank
from raylaunch_actors.graphs.probes import CALLS, Probes

from raylaunch.errors import RankFault
from raylaunch.protocol import Route
from tests.communicator.ranks import Channel, attached, check, over_gloo, run

ROUTES = (Route(400, "shared-memory"), Route(None, "gloo"))


@pytest.fixture
def alone():
    """Shared memory up to 400 bytes, copies beyond, of one rank."""
    shared = SharedMemoryAllReduce(0, 1, 4096, 1 << 16, 1)
    shared.attach([shared.offer()])
    communicator = routed(
        (Route(400, "shared-memory"), Route(None, "single")), {"shared-memory": shared, "single": SingleRank()}
    )
    yield communicator
    communicator.close()


def test_only_what_goes_to_the_one_that_registers_is_registered(alone):
    assert (alone.kind, bool(alone.registration), alone.max_bytes) == ("shared-memory+single", True, 4096)
    assert [alone.inputs_for(nbytes) for nbytes in (4, 400, 404)] == [1, 1, 0]
    small, large = (alone.input_memory(nbytes).view(torch.float32) for nbytes in (400, 800))
    with alone.capture():
        assert alone.capturing
        assert all(member.capturing for member in alone.members.values())
        calls = [
            alone.record(x, torch.empty_like(x), CallLabel("prefill", 8, "piece0", index))
            for index, x in enumerate((small, large))
        ]
    assert [call.needs_peers for call in calls] == [True, False]
    assert [one.nbytes for one in pending_inputs(alone)] == [400]
    assert not calls[0].registered
    assert calls[1].registered
    assert register_inputs(alone, [pending_inputs(alone)]) == registered_inputs(alone) == 1
    assert calls[0].registered
    assert pending_inputs(alone) == ()


def test_f05_an_exception_drops_what_is_pending_and_leaves_every_context(alone):
    def broken():
        with alone.capture():
            x = alone.input_memory(4).view(torch.float32)
            alone.record(x, x.clone(), CallLabel("prefill", 8, "piece0", 0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert pending_inputs(alone) == ()
    assert not any(member.capturing for member in (alone, *alone.members.values()))


def test_f02_outside_of_the_capture_context(alone):
    for nbytes in (400, 800):
        x = alone.input_memory(nbytes).view(torch.float32)
        with pytest.raises(RankFault, match="outside the capture context"):
            alone.record(x, x.clone(), CallLabel("prefill", 8, "piece0", 0))


def test_one_kind_needs_no_router():
    single = SingleRank()
    assert routed((Route(8, "single"), Route(None, "single")), {"single": single, "other": SingleRank()}) is single


def test_routes_that_do_not_end_or_two_that_register(alone):
    with pytest.raises(ValueError, match="no limit"):
        RoutedAllReduce((Route(8, "single"),), {"single": SingleRank()})
    with pytest.raises(ValueError, match="at most one"):
        RoutedAllReduce((Route(None, "a"),), {"a": alone, "b": alone})


def mixed(channel: Channel):
    with over_gloo(channel) as gloo:
        shared = attached(channel)
        communicator = routed(ROUTES, {"shared-memory": shared, "gloo": gloo})
        xs = [communicator.input_memory(nbytes).view(torch.float32) for nbytes in (400, 800)]
        outs = [torch.empty_like(x) for x in xs]
        with communicator.capture():
            calls = [
                communicator.record(x, out, CallLabel("prefill", 100, "piece0", index))
                for index, (x, out) in enumerate(zip(xs, outs, strict=True))
            ]
        count = register_inputs(communicator, channel.exchange(pending_inputs(communicator)))
        sums = []
        for step in range(5):
            for x, call in zip(xs, calls, strict=True):
                x.fill_(step + channel.rank)
                call.run()
            sums += [float(communicator.all_reduce(torch.full((n,), step))[0]) for n in (3, 300)]
            sums += [float(out[-1]) for out in outs]
        channel.exchange(None)
        shared.close()
        return count, sums


def test_graphs_and_eager_over_both():
    wanted = [value for step in range(5) for value in (2 * step, 2 * step, 2 * step + 1, 2 * step + 1)]
    assert check(run(2, mixed)) == [(1, wanted)] * 2


def probed(channel: Channel):
    with over_gloo(channel) as gloo:
        shared = attached(channel)
        probes = Probes({"shared-memory": shared, "gloo": gloo}, (64, 4096), torch.float32, torch.device("cpu"))
        pending = probes.capture()
        probes.register(channel.exchange(pending))
        times = [
            probes.measure(way(kind, size), 3)
            for kind in probes.communicators
            for size in probes.sizes
            for way in (probes.graph, probes.eager)
        ]
        channel.exchange(None)
        shared.close()
        return len(pending), [0 < one < 1e6 for one in times]


@pytest.mark.slow
def test_probes_of_a_kind_that_registers_and_one_that_does_not():
    assert check(run(2, probed)) == [(2 * CALLS["cpu"], [True] * 8)] * 2
