"""Captures all shapes of a round: order, iterations, the gate before each, the audit afterwards."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from raylaunch_actors.communicator.base import AllReduce
from raylaunch_actors.graphs.context import Mode
from raylaunch_actors.graphs.piecewise import PiecewiseGraph

ITERATIONS = 2  # one warms, one captures; a third would replay before registration

Run = Callable[[Mode, str, int], object]
Before = Callable[[str, int, int], None]


class CaptureRunner:
    """Takes the pieces through their iterations, inside the communicator's capture context.

    Args:
        communicator: whose `capture()` is entered, once per round.
        run: ``run(mode, round, shape)``: a dummy forward pass that touches no cache.
        pieces: those of the compiled model, for each round.
        iterations: per shape; anything but 2 is for showing what goes wrong.
        memory: bytes that graphs hold now, such as a backend's ``memory``.

    Attributes:
        added: for each round and shape, bytes that its capture added.
    """

    def __init__(
        self,
        communicator: AllReduce,
        run: Run,
        pieces: Mapping[str, Sequence[PiecewiseGraph]],
        iterations: int = ITERATIONS,
        memory: Callable[[], int] = lambda: 0,
    ) -> None:
        self.communicator = communicator
        self.iterations = iterations
        self.added: dict[tuple[str, int], int] = {}
        self._memory = memory
        self._run = run
        self._pieces = pieces
        self._shapes: list[tuple[str, int]] = []

    def capture(self, round: str, shapes: Sequence[int], before: Before) -> None:
        """Captures a round, largest shape first, so that smaller ones reuse its memory.

        The inputs are pending afterwards: the caller exchanges and registers them. An exception of any
        iteration leaves at once, and nothing is pending.

        Args:
            round: ``"prefill"`` or ``"decode"``.
            shapes: padded token counts.
            before: ``before(round, shape, iteration)`` is called before each iteration, from 1: the gate.
        """
        ordered = sorted(set(shapes), reverse=True)
        self._shapes += [(round, shape) for shape in ordered]
        with _garbage_held(), self.communicator.capture():
            for shape in ordered:
                held = self._memory()
                for iteration in range(1, self.iterations + 1):
                    before(round, shape, iteration)
                    self._run(Mode.WARM if iteration == 1 else Mode.CAPTURE, round, shape)
                self.added[round, shape] = self._memory() - held

    def audit(self) -> dict[tuple[str, int], dict[str, bool]]:
        """For each round and shape that was asked for: which pieces hold a graph."""
        return {(r, s): {p.name: (r, s) in p.graphs() for p in self.pieces_of(r)} for r, s in self._shapes}

    def pieces_of(self, round: str) -> Sequence[PiecewiseGraph]:
        """The pieces that a round runs."""
        return self._pieces.get(round, ())

    @property
    def pieces(self) -> list[PiecewiseGraph]:
        """Every piece once."""
        return list(dict.fromkeys(piece for pieces in self._pieces.values() for piece in pieces))

    def recorded_inputs(self) -> dict[tuple[str, int], int]:
        """For each round and shape: how many all-reduce inputs its graphs hold."""
        counts: Counter[tuple[str, int]] = Counter()
        for round, shape in self._shapes:
            for piece in self.pieces_of(round):
                graph = piece.graph(round, shape)
                counts[round, shape] += graph.recorded_inputs if graph else 0
        return dict(counts)


@contextlib.contextmanager
def _garbage_held() -> Iterator[None]:
    """No garbage collection inside: it would free, and let others reuse, memory between iterations, and a graph that it
    destroys ends the capture of another (https://github.com/pytorch/pytorch/pull/161037)."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
