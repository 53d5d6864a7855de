"""What a graph backend offers to the pieces. recorded.py is the one for a CPU; others go beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from raylaunch.errors import RankFault
from raylaunch_actors.communicator.base import AllReduce, RecordedCall


@dataclass(frozen=True)
class GraphLabel:
    """Which graph: its text is such as ``prefill/1032/piece3``."""

    round: str
    shape: int
    piece: str

    def __str__(self) -> str:
        return f"{self.round}/{self.shape}/{self.piece}"


def require_registered(label: GraphLabel, communicator: AllReduce, calls: Sequence[RecordedCall]) -> None:
    """Raises F01 unless a graph with these all-reduces may be replayed: all are registered, no capture goes on."""
    rank = communicator.rank
    if communicator.capturing:
        raise RankFault(
            "F01",
            f"rank {rank}: {label} is replayed inside the capture context: its all-reduce inputs are registered after "
            "it; a shape runs as many iterations as the backend needs, and not one more",
        )
    for call in calls:
        if not call.registered:
            raise RankFault(
                "F01",
                f"rank {rank}: {label} (shape {label.shape}) is replayed before the input of its all-reduce "
                f"{call.label} is registered with the peers",
            )


class Graph(Protocol):
    """A captured run of one piece at one shape.

    Attributes:
        label: which graph.
        outputs: what `replay` returns: the same tensors every time, overwritten by the next replay of the
            piece at any shape.
    """

    label: GraphLabel
    outputs: Any

    @property
    def recorded_inputs(self) -> int:
        """How many all-reduce inputs it holds."""

    def replay(self) -> Any:
        """Runs the graph on what its static inputs hold.

        Raises:
            RankFault: F01, before anything runs, inside the capture context or if one of its all-reduces is
                not registered.
        """


class GraphPool(Protocol):
    """The memory of one piece, shared by its graphs of all rounds and shapes."""

    def static_inputs(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Contiguous tensors of these shapes and dtypes at fixed addresses, not overlapping one another."""

    def poison(self) -> None:
        """Fills the memory with NaN, to show stale reads. What earlier replays returned is gone."""


class GraphBackend(Protocol):
    """Captures functions of tensors as graphs.

    Attributes:
        name: such as ``recorded``.
    """

    name: str

    def new_pool(self) -> GraphPool:
        """Memory for one piece; nothing is reserved yet."""

    def memory(self) -> int:
        """Bytes of the device that are held now: what a capture adds is the difference."""

    def capture(
        self,
        fn: Callable[..., Any],
        inputs: Sequence[Any],
        label: GraphLabel,
        pool: Any,
        read_only: Sequence[torch.Tensor] = (),
    ) -> Graph:
        """Runs ``fn(*inputs)`` once and captures it; `Graph.outputs` then holds this run's valid results.

        Args:
            fn: functional, without synchronisation and random numbers.
            inputs: tensors at addresses that stay, and constants.
            label: which graph.
            pool: of this backend's `new_pool`.
            read_only: inputs that are private copies: writing to one in place would be lost.

        Raises:
            CaptureError: an operation that cannot be captured.
            RankFault: F02 outside of the communicator's capture context.
        """
