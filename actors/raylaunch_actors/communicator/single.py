"""The communicator of a group of one rank: every all-reduce is a copy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from raylaunch_actors.communicator.base import CallLabel, require_capture
from raylaunch_actors.communicator.parts import NothingToRegister


class SingleCall:
    """A recorded all-reduce of one rank."""

    registered = True
    needs_peers = False

    def __init__(self, x: torch.Tensor, out: torch.Tensor, label: CallLabel) -> None:
        self.label = label
        self._x = x
        self._out = out

    def run(self) -> None:
        """Copies the input."""
        self._out.copy_(self._x)


class SingleRank(NothingToRegister):
    kind = "single"
    rank = 0
    world_size = 1

    def __init__(self, max_bytes: int = 1 << 62) -> None:
        self.max_bytes = max_bytes

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of x."""
        return x.clone(memory_format=torch.contiguous_format)

    @contextlib.contextmanager
    def recording(self, round: str, shape: int, piece: str) -> Iterator[list[SingleCall]]:
        """Nothing is recorded: one rank has no peers."""
        yield []

    def input_memory(self, nbytes: int) -> torch.Tensor:
        """Ordinary memory: nobody else reads it."""
        with torch.inference_mode(False):
            return torch.empty(nbytes, dtype=torch.uint8)

    def record(self, x: torch.Tensor, out: torch.Tensor, label: CallLabel) -> SingleCall:
        require_capture(self, str(label))
        return SingleCall(x, out, label)

    def abort(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Holds nothing."""
