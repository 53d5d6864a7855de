"""The memory of one piece's recorded graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from raylaunch_actors.communicator.base import AllReduce
from raylaunch_actors.graphs.memory_plan import ALIGNMENT

POISON = 0xFF  # NaN in every floating-point dtype, -1 in integers


@dataclass(frozen=True)
class Region:
    """Bytes at a fixed address.

    Attributes:
        memory: uint8, one dimension, its first byte aligned.
    """

    memory: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Size."""
        return self.memory.numel()

    def view(self, offset: int, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor at a byte offset of the region."""
        start = self.memory.storage_offset() + offset
        if start % dtype.itemsize:
            raise ValueError(f"byte {start} is not aligned for {dtype}")
        with torch.inference_mode(False):  # an inference tensor could not be written outside of inference mode
            return torch.empty(0, dtype=dtype).set_(
                self.memory.untyped_storage(), start // dtype.itemsize, tuple(shape), tuple(stride)
            )


class RecordedPool:
    """Three regions, each as large as the largest graph needs; see :class:`raylaunch_actors.graphs.backend.GraphPool`.

    ``shared`` holds inputs of all-reduces, which peers read; ``private`` the rest; ``inputs`` the static
    inputs. Graphs keep the regions that they were captured in: growing takes new memory and leaves them
    alone. So the largest shape is best captured first.
    """

    def __init__(self, communicator: AllReduce) -> None:
        self.communicator = communicator
        self.regions: list[Region] = []  # all that were ever made
        self._shared = self._private = self._inputs = Region(torch.empty(0, dtype=torch.uint8))

    def shared(self, nbytes: int) -> Region:
        """At least `nbytes` that peers can read. Raises RankFault F17 if there is not enough."""
        if nbytes > self._shared.nbytes:
            self._shared = Region(self.communicator.input_memory(nbytes))
            self.regions.append(self._shared)
        return self._shared

    def private(self, nbytes: int) -> Region:
        """At least `nbytes` of ordinary memory."""
        if nbytes > self._private.nbytes:
            self._private = self._allocate(nbytes)
        return self._private

    def static_inputs(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        offsets, end = [], 0
        for tensor in like:
            offsets.append(end)
            end += (tensor.numel() * tensor.element_size() + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        if end > self._inputs.nbytes:
            self._inputs = self._allocate(end)
        return [
            self._inputs.view(offset, t.shape, _contiguous_stride(t.shape), t.dtype)
            for offset, t in zip(offsets, like, strict=True)
        ]

    def poison(self) -> None:
        for region in self.regions:
            region.memory.fill_(POISON)

    def _allocate(self, nbytes: int) -> Region:
        with torch.inference_mode(False):
            memory = torch.empty(nbytes + ALIGNMENT, dtype=torch.uint8)
            skip = -memory.data_ptr() % ALIGNMENT
            region = Region(memory[skip : skip + nbytes])
        self.regions.append(region)
        return region


def _contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))
