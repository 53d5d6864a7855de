"""What every communicator offers: real all-reduces, and the life cycle of all-reduces recorded in graphs.

The life cycle is: ``capture()`` is entered, graphs are recorded through ``record()``, ``capture()`` is left
(no collective in any outcome), the driver collects every rank's ``pending()`` and compares them,
``register()`` is called with all of them, and only then may a recorded call run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from raylaunch.errors import RankFault


@dataclass(frozen=True)
class CallLabel:
    """Where an all-reduce was recorded; its text is such as ``prefill/1032/piece3#0``.

    Attributes:
        round: capture round.
        shape: padded tokens.
        piece: name of the piece.
        index: position among the piece's all-reduces.
    """

    round: str
    shape: int
    piece: str
    index: int

    def __str__(self) -> str:
        return f"{self.round}/{self.shape}/{self.piece}#{self.index}"


@dataclass(frozen=True)
class RecordedInput:
    """One all-reduce input that a graph reads from a fixed address: plain data, compared and carried by the driver.

    Attributes:
        label: the text of its :class:`CallLabel`.
        round: capture round.
        shape: padded tokens of the graph.
        tensor_shape: shape of the input.
        dtype: such as ``torch.bfloat16``.
        nbytes: size of the input in bytes.
        handle: (segment, byte offset) at which peers find it; a segment is named ``rank<r>``.
    """

    label: str
    round: str
    shape: int
    tensor_shape: tuple[int, ...]
    dtype: str
    nbytes: int
    handle: tuple[str, int]

    def same_as(self, other: RecordedInput) -> bool:
        """Whether two ranks recorded the same all-reduce; only the addresses may differ."""
        mine = (self.label, self.round, self.shape, self.tensor_shape, self.dtype, self.nbytes)
        return mine == (other.label, other.round, other.shape, other.tensor_shape, other.dtype, other.nbytes)

    def describe(self) -> str:
        """Such as ``prefill/1032/piece3#0 (1, 1032, 128) torch.float32``."""
        return f"{self.label} {self.tensor_shape} {self.dtype}"


class RecordedCall(Protocol):
    """An all-reduce that belongs to a graph.

    Attributes:
        label: where it was recorded.
        needs_peers: whether its input has to be registered.
    """

    label: CallLabel
    needs_peers: bool

    @property
    def registered(self) -> bool:
        """Whether it may run: the peers' inputs are known, or none are needed."""

    def run(self) -> None:
        """Reduces the ranks' inputs into this rank's output tensor."""


class RegistersInputs(Protocol):
    """The recorded inputs that peers read where they lie: each is registered with them before its graph may run."""

    @property
    def capacity(self) -> int | None:
        """Inputs that can be registered in all; None for no limit."""

    def pending(self) -> tuple[RecordedInput, ...]:
        """The inputs recorded and not registered yet, in order."""

    def register(self, peers: Sequence[Sequence[RecordedInput]]) -> int:
        """Makes the pending calls runnable; ``peers[r]`` is what rank r had pending.

        Returns how many were registered. Raises RankFault F03 if the ranks' lists differ; nothing is registered then.
        """

    def registered(self) -> int:
        """How many inputs have been registered so far."""


class AllReduce(Protocol):
    """Sums tensors over the ranks of one group, now or in a graph.

    Attributes:
        kind: see :class:`raylaunch.protocol.CommunicatorFacts`.
        rank: this rank.
        world_size: ranks in the group.
        max_bytes: largest input reduced in one go; larger ones are reduced in chunks.
    """

    kind: str
    rank: int
    world_size: int
    max_bytes: int

    @property
    def registration(self) -> RegistersInputs | None:
        """What registers the inputs of recorded all-reduces; None where a replay needs no address of a peer."""

    @property
    def capturing(self) -> bool:
        """Whether this rank is inside :meth:`capture`."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, as a new contiguous tensor of x's shape and dtype, with identical bits on all ranks.

        Raises:
            CollectiveAborted: a peer aborted, or did not arrive by the deadline.
        """

    def capture(self) -> AbstractContextManager[None]:
        """The capture context. Leaving it never communicates; an exception drops what is pending."""

    def input_memory(self, nbytes: int) -> torch.Tensor:
        """Memory for the inputs of recorded all-reduces: uint8, one dimension, aligned, at an address that stays.

        Raises:
            RankFault: F17, there is not enough of it.
        """

    def inputs_for(self, nbytes: int) -> int:
        """How many inputs a captured all-reduce of ``nbytes`` will have to register."""

    def abort(self) -> None:
        """Makes the waits of all ranks end in CollectiveAborted. May be called from any thread."""

    def close(self) -> None:
        """Gives back what it holds. May be called more than once."""


class RecordsCalls(AllReduce, Protocol):
    """A communicator whose all-reduces are recorded one by one: for graphs that the CPU replays."""

    def record(self, x: torch.Tensor, out: torch.Tensor, label: CallLabel) -> RecordedCall:
        """Records an all-reduce from x into out, both contiguous, of one shape and dtype, at fixed addresses.

        Raises:
            RankFault: F02 outside of :meth:`capture`; F04 if x overlaps a pending input of another piece; F16 if the
                peers cannot reach x.
        """


class RecordsStreams(AllReduce, Protocol):
    """A communicator that notices by itself when the stream captures: for CUDA graphs."""

    def recording(self, round: str, shape: int, piece: str) -> AbstractContextManager[Sequence[RecordedCall]]:
        """Names what is recorded inside; the sequence holds those calls when the block has ended."""


def pending_inputs(communicator: AllReduce) -> tuple[RecordedInput, ...]:
    """What has been recorded and is not registered yet; nothing where nothing has to be."""
    return communicator.registration.pending() if communicator.registration else ()


def register_inputs(communicator: AllReduce, peers: Sequence[Sequence[RecordedInput]]) -> int:
    """Registers them, where anything has to be; see :meth:`RegistersInputs.register`."""
    return communicator.registration.register(peers) if communicator.registration else 0


def registered_inputs(communicator: AllReduce) -> int:
    """How many inputs have been registered; none where nothing has to be."""
    return communicator.registration.registered() if communicator.registration else 0


def require_capture(communicator: AllReduce, what: str) -> None:
    """Raises F02 unless `communicator` is inside its capture context."""
    if not communicator.capturing:
        raise RankFault(
            "F02",
            f"rank {communicator.rank}: {what} is captured outside the capture context: its input "
            "would never be registered with the peers; capture inside `with communicator.capture():`",
        )


def require_same(rank: int, peers: Sequence[Sequence[RecordedInput]]) -> None:
    """Raises F03, naming the first difference, unless all ranks recorded the same, in the same order."""
    mine = peers[rank]
    for other, theirs in enumerate(peers):
        for index, (a, b) in enumerate(zip(mine, theirs, strict=False)):
            if not a.same_as(b):
                raise RankFault(
                    "F03",
                    f"ranks recorded different all-reduce inputs: input {index} is {a.describe()} on rank "
                    f"{rank} and {b.describe()} on rank {other}",
                )
        if len(mine) != len(theirs):
            short, long = (mine, theirs) if len(mine) < len(theirs) else (theirs, mine)
            first = long[len(short)]
            raise RankFault(
                "F03",
                f"ranks recorded different all-reduce inputs: {len(mine)} on rank {rank}, {len(theirs)} on "
                f"rank {other}; the first that is missing is input {len(short)}, {first.describe()}",
            )
