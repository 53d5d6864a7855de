"""The communicator of a group of one rank: every all-reduce is a copy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from actors.communicator.base import CallLabel, RecordedInput, require_capture
from raylaunch.errors import RankFault


class SingleCall:
    """A recorded all-reduce of one rank."""

    registered = True

    def __init__(self, x: torch.Tensor, out: torch.Tensor, label: CallLabel) -> None:
        self.label = label
        self._x = x
        self._out = out

    def run(self) -> None:
        """Copies the input."""
        self._out.copy_(self._x)


class SingleRank:
    """See :class:`actors.communicator.base.Communicator`."""

    kind = "single"
    registers = False
    rank = 0
    world_size = 1

    def __init__(self, max_bytes: int = 1 << 62) -> None:
        self.max_bytes = max_bytes
        self._capturing = False

    @property
    def capturing(self) -> bool:
        """Whether this rank is inside `capture()`."""
        return self._capturing

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of x."""
        return x.clone(memory_format=torch.contiguous_format)

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """The capture context; see :meth:`Communicator.capture`."""
        if self._capturing:
            raise RuntimeError("the capture context is not re-entrant")
        self._capturing = True
        try:
            yield
        finally:
            self._capturing = False

    @contextlib.contextmanager
    def recording(self, round: str, shape: int, piece: str) -> Iterator[list[SingleCall]]:
        """Nothing is recorded: one rank has no peers."""
        yield []

    def input_memory(self, nbytes: int) -> torch.Tensor:
        """Ordinary memory: nobody else reads it."""
        with torch.inference_mode(False):
            return torch.empty(nbytes, dtype=torch.uint8)

    def record(self, x: torch.Tensor, out: torch.Tensor, label: CallLabel) -> SingleCall:
        """See :meth:`Communicator.record`."""
        require_capture(self, str(label))
        return SingleCall(x, out, label)

    def pending(self) -> tuple[RecordedInput, ...]:
        """Nothing: there is nobody to tell."""
        return ()

    def register(self, peers: Sequence[Sequence[RecordedInput]]) -> int:
        """Zero. Raises RankFault F03 if the lists are not those of one rank without inputs."""
        if [len(p) for p in peers] != [0]:
            raise RankFault("F03", f"one rank has nothing to register, got {[len(p) for p in peers]} inputs")
        return 0

    def registered(self) -> int:
        """Zero."""
        return 0

    def inputs_for(self, nbytes: int) -> int:
        """None."""
        return 0

    def abort(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Holds nothing."""
