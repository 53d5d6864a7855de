"""The rules on what ranks recorded: F02, F03, F04, F16, F17."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from raylaunch_actors.communicator.base import CallLabel, RecordedInput, require_same
from raylaunch_actors.communicator.shared_memory import SharedMemoryAllReduce
from raylaunch_actors.communicator.single import SingleRank

from raylaunch.errors import RankFault


def recorded(index, **changes):
    label = str(CallLabel("prefill", 32, "piece1", index))
    base = RecordedInput(label, "prefill", 32, (32, 8), "torch.float32", 1024, ("rank0", 64 * index))
    return dataclasses.replace(base, **changes)


@pytest.fixture
def alone():
    """A shared-memory communicator of one rank: everything but the waiting."""
    communicator = SharedMemoryAllReduce(0, 1, 4096, 1 << 16, 1)
    communicator.attach([communicator.offer()])
    yield communicator
    communicator.close()


def test_addresses_may_differ_between_ranks():
    require_same(0, [[recorded(0)], [recorded(0, handle=("rank1", 4096))]])


@pytest.mark.parametrize(
    ("theirs", "match"),
    [
        (
            [recorded(0)],
            "2 on rank 0, 1 on rank 1; the first that is missing is input 1, prefill/32/piece1#1",
        ),
        (
            [recorded(0), recorded(1), recorded(2)],
            "2 on rank 0, 3 on rank 1; the first that is missing is input 2",
        ),
        ([recorded(0), recorded(1, tensor_shape=(16, 8))], r"input 1 .*\(32, 8\).*\(16, 8\)"),
        ([recorded(0, dtype="torch.bfloat16"), recorded(1)], "input 0 .*bfloat16"),
        ([recorded(1), recorded(0)], "input 0 is prefill/32/piece1#0"),
    ],
)
def test_f03_names_the_first_difference(theirs, match):
    with pytest.raises(RankFault, match=match) as caught:
        require_same(0, [[recorded(0), recorded(1)], theirs])
    assert caught.value.code == "F03"


def test_f02_outside_of_the_capture_context(alone):
    memory = alone.input_memory(64).view(torch.float32)
    for communicator in (alone, SingleRank()):
        with pytest.raises(RankFault, match="outside the capture context") as caught:
            communicator.record(memory, memory.clone(), CallLabel("prefill", 8, "piece0", 0))
        assert caught.value.code == "F02"


def test_f04_one_piece_may_reuse_its_memory_and_another_may_not(alone):
    memory = alone.input_memory(256).view(torch.float32)
    with alone.capture():
        alone.record(memory, memory.clone(), CallLabel("prefill", 32, "piece0", 0))
        alone.record(memory[:32], memory[:32].clone(), CallLabel("prefill", 8, "piece0", 0))
        with pytest.raises(RankFault, match="captured memory was reused") as caught:
            alone.record(memory[16:48], memory[16:48].clone(), CallLabel("prefill", 32, "piece1", 0))
        assert caught.value.code == "F04"
    assert alone.register([alone.pending()]) == 2
    with alone.capture():  # registered addresses are known to the peers: reuse is no fault
        alone.record(memory[16:48], memory[16:48].clone(), CallLabel("decode", 32, "piece1", 0))


def test_f16_an_input_that_peers_cannot_reach(alone):
    x = torch.zeros(8)
    with alone.capture(), pytest.raises(RankFault, match="not contiguous in the shared arena") as caught:
        alone.record(x, x, CallLabel("prefill", 8, "piece0", 0))
    assert caught.value.code == "F16"


def test_f17_an_arena_that_is_too_small_says_by_how_much(alone):
    with pytest.raises(RankFault, match=r"1048576 B asked, \d+ B left of 65536") as caught:
        alone.input_memory(1 << 20)
    assert caught.value.code == "F17"


def test_registration_is_all_or_nothing(alone):
    memory = alone.input_memory(64).view(torch.float32)
    with alone.capture():
        call = alone.record(memory, memory.clone(), CallLabel("prefill", 8, "piece0", 0))
        with pytest.raises(RankFault, match="after the capture context"):
            alone.register([alone.pending()])
    with pytest.raises(RankFault, match="what this rank has pending"):
        alone.register([[]])
    assert not call.registered
    assert alone.registered() == 0
    with pytest.raises(RankFault) as caught:
        call.run()
    assert caught.value.code == "F01"
    assert alone.register([alone.pending()]) == 1
    assert (alone.pending(), alone.registered(), call.registered) == ((), 1, True)
    call.run()


def test_f05_an_exception_drops_what_is_pending(alone):
    memory = alone.input_memory(64).view(torch.float32)
    label = CallLabel("prefill", 8, "piece0", 0)

    def broken():
        with alone.capture():
            alone.record(memory, memory.clone(), label)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert alone.pending() == ()
    assert not alone.capturing
    with alone.capture(), pytest.raises(RuntimeError, match="re-entrant"), alone.capture():
        pass
