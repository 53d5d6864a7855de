"""What communicators on GPUs have in common: messages cut to what a kernel takes, graphs that record nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from raylaunch_actors.communicator.base import RecordedCall
from raylaunch_actors.communicator.parts import NothingToRegister

ALIGNMENT = 16  # the kernels move 16 bytes at a time


def reduce_in_parts(x: torch.Tensor, max_bytes: int, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The sum over ranks of a message of any size, as a new contiguous tensor of x's shape and dtype.

    Args:
        max_bytes: largest message that ``reduce`` takes; a multiple of ``ALIGNMENT``, as are those it is given.
        reduce: the sum over ranks of one contiguous message.
    """
    x = x.contiguous()
    nbytes = x.numel() * x.element_size()
    if nbytes == 0:
        return x.clone()
    if nbytes % ALIGNMENT:
        return reduce_in_parts(padded(x), max_bytes, reduce)[: x.numel()].view(x.shape)
    if nbytes > max_bytes:
        parts = x.view(-1).split(max_bytes // x.element_size())
        return torch.cat([reduce(part) for part in parts]).view(x.shape)
    return reduce(x)


def padded(x: torch.Tensor) -> torch.Tensor:
    """x as one dimension, with zeros up to the next multiple of ``ALIGNMENT`` bytes."""
    extra = -(x.numel() * x.element_size()) % ALIGNMENT // x.element_size()
    return torch.nn.functional.pad(x.view(-1), (0, extra))


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has done all it was given; on a CPU nothing is outstanding.

    Where a peer does not come to an all-reduce this is where a rank stands, so that its stack, which shows this
    folder, tells it from the rank that everybody waits for.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class NothingRecorded(NothingToRegister):
    """For communicators whose graphs hold kernels of a library, which find the peers by themselves."""

    @contextlib.contextmanager
    def recording(self, round: str, shape: int, piece: str) -> Iterator[Sequence[RecordedCall]]:
        """No call is recorded."""
        yield []

    def input_memory(self, nbytes: int) -> torch.Tensor:
        """Memory of torch's allocator: any of it may be an input."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cuda")
