"""All-reduces between real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest
import torch
from raylaunch_actors.communicator.base import CallLabel, pending_inputs, register_inputs
from raylaunch_actors.communicator.shared_memory import SharedMemoryAllReduce
from raylaunch_actors.communicator.single import SingleRank

from raylaunch.errors import CollectiveAborted
from tests.busy import patient
from tests.communicator.ranks import Channel, attached, check, over_gloo, run
from tests.shared_memory import in_dev_shm

SHAPES = [(), (1,), (7,), (1, 33, 16), (3, 5, 2), (1, 200, 16), (0, 4)]
DTYPES = [torch.float32, torch.bfloat16]


def inputs(rank: int):
    generator = torch.Generator().manual_seed(rank)
    for dtype in DTYPES:
        for shape in SHAPES:
            yield torch.randn(shape, generator=generator).to(dtype)
        yield torch.randn(6, 10, generator=generator).to(dtype).t()  # not contiguous


def expected(world_size: int):
    for parts in zip(*(inputs(rank) for rank in range(world_size)), strict=True):
        total = parts[0].clone()
        for part in parts[1:]:
            total = total + part
        yield total


def reduce_all(channel: Channel, kind: str):
    if kind == "gloo":
        with over_gloo(channel, max_bytes=4096) as communicator:
            return [communicator.all_reduce(x) for x in inputs(channel.rank)]
    communicator = attached(channel, max_bytes=4096)  # (1, 200, 16) takes several chunks
    with torch.inference_mode():
        outs = [communicator.all_reduce(x) for x in inputs(channel.rank)]
    for x in inputs(channel.rank):  # the slots are used many times over, now outside of inference mode
        communicator.all_reduce(x)
    channel.exchange(None)
    communicator.close()
    return [out.clone() for out in outs]


@pytest.mark.parametrize(("kind", "world_size"), [("shared-memory", 2), ("shared-memory", 4), ("gloo", 2)])
def test_sums_are_exact_and_have_the_same_bits_everywhere(kind, world_size):
    results = check(run(world_size, reduce_all, kind))
    for index, total in enumerate(expected(world_size)):
        for outs in results:
            assert outs[index].dtype == total.dtype
            assert outs[index].shape == total.shape
            assert outs[index].is_contiguous()
            assert torch.equal(outs[index], total)


def test_one_rank():
    communicator = SingleRank()
    x = torch.randn(4, 3).t()
    out = communicator.all_reduce(x)
    assert torch.equal(out, x)
    assert out.data_ptr() != x.data_ptr()
    assert out.is_contiguous()
    with communicator.capture():
        communicator.record(x, out.zero_(), CallLabel("decode", 2, "piece0", 0)).run()
    assert torch.equal(out, x)
    assert register_inputs(communicator, [[]]) == 0


def graph_calls(channel: Channel):
    communicator = attached(channel)
    xs = [communicator.input_memory(400).view(torch.float32) for _ in range(2)]
    outs = [torch.zeros(100) for _ in xs]
    sums = []
    with communicator.capture():
        calls = [
            communicator.record(x, out, CallLabel("prefill", 100, f"piece{i}", 0))
            for i, (x, out) in enumerate(zip(xs, outs, strict=True))
        ]
        sums.append(float(communicator.all_reduce(torch.ones(3))[0]))  # real inside of the context
    count = register_inputs(communicator, channel.exchange(pending_inputs(communicator)))
    for step in range(200):
        for x, call in zip(xs, calls, strict=True):
            x.fill_(step + channel.rank)
            call.run()
            x.fill_(-1)  # all peers have read it
        sums.append(float(communicator.all_reduce(torch.full((3,), step))[0]))  # mixed with eager ones
        assert all(bool((out == outs[0]).all()) for out in outs)
        sums.append(float(outs[0][99]))
    channel.exchange(None)
    communicator.close()
    return count, sums


@pytest.mark.parametrize("world_size", [2, 4])
def test_registered_calls_reduce_the_peers_own_memory(world_size):
    ranks = sum(range(world_size))
    wanted = [float(world_size)]
    for step in range(200):
        wanted += [world_size * step, world_size * step + ranks]
    for count, sums in check(run(world_size, graph_calls)):
        assert count == 2
        assert sums == wanted


def different_lists(channel: Channel):
    communicator = attached(channel)
    x = communicator.input_memory(400).view(torch.float32)
    with communicator.capture():
        for index in range(2 - channel.rank):
            communicator.record(x, torch.zeros(100), CallLabel("prefill", 100, "piece0", index))
    register_inputs(communicator, channel.exchange(pending_inputs(communicator)))


def test_f03_is_raised_on_every_rank_before_anything_is_registered():
    for error in run(2, different_lists):
        assert error.code == "F03"
        assert "prefill/100/piece0#1" in str(error)


def killed_peer(channel: Channel, kind: str):
    with contextlib.ExitStack() as stack:
        if kind == "gloo":
            communicator = stack.enter_context(over_gloo(channel, deadline_s=1))
        else:
            communicator = attached(channel, deadline_s=1)
        communicator.all_reduce(torch.ones(4))
        if channel.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        start = time.monotonic()
        try:
            communicator.all_reduce(torch.ones(4))
            communicator.all_reduce(torch.ones(4))
        except CollectiveAborted as error:
            return str(error), time.monotonic() - start, in_dev_shm()
    return None


@pytest.mark.parametrize("kind", ["shared-memory", "gloo"])
def test_a_killed_peer_ends_the_wait_at_the_deadline_and_leaves_nothing(kind):
    before = in_dev_shm()
    survivor, killed = run(2, killed_peer, kind)
    assert killed == -signal.SIGKILL
    message, seconds, during = survivor
    assert seconds < patient(4)
    assert "rank 0" in message
    assert "all-reduce #2" in message
    if kind == "shared-memory":
        assert "waited 1 s for rank 1 to reach all-reduce #2; it is at all-reduce #1" in message
    assert during == before == in_dev_shm()


def late_peer(channel: Channel, kind: str, who: int):
    with contextlib.ExitStack() as stack:
        communicator = stack.enter_context(over_gloo(channel)) if kind == "gloo" else attached(channel)
        communicator.all_reduce(torch.ones(4))
        if channel.rank == 1 and who == 1:
            time.sleep(0.2)
            communicator.abort()  # it failed, and lets the others go
        elif channel.rank == 0:
            if who == 0:
                threading.Timer(0.2, communicator.abort).start()
            start = time.monotonic()
            try:
                communicator.all_reduce(torch.ones(4))
            except CollectiveAborted as error:
                channel.exchange(None)
                return str(error), time.monotonic() - start
        channel.exchange(None)
    return None


@pytest.mark.parametrize("kind", ["shared-memory", "gloo"])
@pytest.mark.parametrize("who", [0, 1])
def test_abort_ends_the_waits_of_the_peer_and_of_oneself(kind, who):
    message, seconds = check(run(2, late_peer, kind, who))[0]
    assert seconds < patient(5)
    assert ("this rank aborted" if who == 0 else "rank 1 aborted") in message


def open_and_close(channel: Channel):
    def descriptors():
        return sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _is_open(n))

    def mappings():
        with open("/proc/self/maps") as file:
            return sum("memfd:raylaunch" in line for line in file)

    before = descriptors()
    for _ in range(3):
        communicator = attached(channel)
        communicator.all_reduce(torch.ones(8))
        assert mappings() == 2
        channel.exchange(None)
        communicator.close()
        communicator.close()
        assert mappings() == 0
    assert descriptors() == before
    with pytest.raises(RuntimeError, match="closed"):
        communicator.all_reduce(torch.ones(8))
    return True


def _is_open(number: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")


def test_close_gives_everything_back():
    assert check(run(2, open_and_close)) == [True, True]


def test_verbs_out_of_order():
    communicator = SharedMemoryAllReduce(0, 2, 4096, 1 << 16, 1)
    with pytest.raises(RuntimeError, match="offer"):
        communicator.attach([])
    with pytest.raises(RuntimeError, match="not attached"):
        communicator.all_reduce(torch.ones(1))
    communicator.close()
