from __future__ import annotations

import dataclasses
import errno
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raylaunch_actors.communicator.arena import ALIGNMENT, HEADER_BYTES, Arena, host_identity, open_segment
from raylaunch_actors.communicator.shared_memory import SharedMemoryAllReduce, arena_bytes_needed

from raylaunch.errors import RankFault
from tests.shared_memory import in_dev_shm


@pytest.fixture
def arena():
    arena = Arena.create("rank0", 1 << 16)
    yield arena
    arena.close()


@given(st.lists(st.integers(1, 5000), max_size=30))
def test_allocations_are_aligned_and_never_overlap(sizes):
    arena = Arena.create("rank0", 1 << 16)
    try:
        end = HEADER_BYTES
        for size in sizes:
            if size > arena.free:
                with pytest.raises(MemoryError, match="left of"):
                    arena.alloc(size)
                break
            offset = arena.alloc(size)
            assert offset % ALIGNMENT == 0
            assert offset >= end
            end = offset + size
            assert end <= arena.nbytes
    finally:
        arena.close()


def test_a_peer_sees_the_same_bytes_and_nothing_is_in_dev_shm(arena):
    before = in_dev_shm()
    peer = open_segment("rank0", arena.handle())
    arena.view(HEADER_BYTES, (4,), torch.float32).copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert peer.base != arena.base
    assert peer.view(HEADER_BYTES, (2, 2), torch.float32).tolist() == [[1, 2], [3, 4]]
    assert in_dev_shm() == before


def test_views_are_checked(arena):
    for offset, dtype in ((-64, torch.float32), (2, torch.float32), (arena.nbytes - 4, torch.float64)):
        with pytest.raises(ValueError, match="segment rank0"):
            arena.view(offset, (1,), dtype)


def test_the_wrong_memory_is_not_taken_for_a_peers(arena):
    handle = arena.handle()
    with pytest.raises(RankFault, match="tokens differ") as caught:
        open_segment("rank1", dataclasses.replace(handle, token="00" * 16))
    assert caught.value.code == "F16"
    with pytest.raises(RankFault, match="announced"):
        open_segment("rank1", dataclasses.replace(handle, nbytes=handle.nbytes * 2))
    arena.close()
    with pytest.raises(RankFault, match="rank1"):
        open_segment("rank1", handle)


def test_a_host_without_memory_is_a_reason_and_not_a_crash(monkeypatch):
    def full(fd, offset, nbytes):
        raise OSError(errno.ENOSPC, "No space left on device")

    descriptors = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    offer = SharedMemoryAllReduce(0, 2, 1 << 12, 1 << 16, 1).offer()
    assert offer.handle is None
    assert "out of memory" in offer.reason
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_another_processor_is_a_reason(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    offer = SharedMemoryAllReduce(0, 2, 1 << 12, 1 << 16, 1).offer()
    assert offer.handle is None
    assert "x86-64" in offer.reason


def test_host_identity_is_stable():
    assert host_identity() == host_identity()


def test_the_arena_that_a_plan_needs_is_enough():
    pieces, nbytes = 40, 33 * 7 * 2
    need = arena_bytes_needed(1000, pieces, largest_shape=33, hidden=7, itemsize=2)
    communicator = SharedMemoryAllReduce(0, 1, 1000, need, 1)
    communicator.attach([communicator.offer()])
    for _ in range(pieces):
        communicator.input_memory(nbytes)
    with pytest.raises(RankFault, match="left of") as caught:
        communicator.input_memory(4096)  # more than what rounding up to pages gave
    assert caught.value.code == "F17"
    communicator.close()
