"""Which piece of the model holds a graph for which shape, read from SGLang's own objects."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

NO_SIZE = "none of its inputs carries the number of tokens, so SGLang runs it eagerly"


class Pieces:
    """The pieces that SGLang's piecewise compiler made, and the graph tables of its other backends.

    A model that is compiled again gets a second set of pieces under the same indexes: a shape is captured when one
    of them holds its graph.
    """

    def __init__(self) -> None:
        self._made: list[weakref.ref[Any]] = []
        self._backends: dict[str, Any] = {}

    def add(self, piece: Any) -> None:
        """Takes note of a piece that was compiled."""
        self._made.append(weakref.ref(piece))

    def use(self, round_name: str, backend: Any) -> None:
        """Takes note of the backend that captures a round."""
        self._backends[round_name] = backend

    def _alive(self) -> list[Any]:
        return [piece for ref in self._made if (piece := ref()) is not None]

    @property
    def indexes(self) -> set[int]:
        """Of all pieces."""
        return {piece.piecewise_compile_index for piece in self._alive()}

    def eager(self) -> dict[int, str]:
        """Pieces that will never hold a graph, with the reason."""
        able = {piece.piecewise_compile_index for piece in self._alive() if piece.sym_shape_indices}
        return dict.fromkeys(sorted(self.indexes - able), NO_SIZE)

    @staticmethod
    def warms(piece: Any, arguments: Sequence[Any]) -> bool:
        """Whether a call, made to capture a piece that can hold a graph, would only warm it.

        Args:
            arguments: what SGLang calls the piece with.
        """
        if not piece.sym_shape_indices:
            return False
        entry = piece.concrete_size_entries.get(arguments[piece.sym_shape_indices[0]])
        if entry is None or entry.cudagraph is not None:
            return False
        return not piece.first_run_finished or entry.num_finished_warmup == 0

    def whole(self, round_name: str) -> bool:
        """Whether a round keeps one graph a shape instead of one a piece."""
        return hasattr(self._backends.get(round_name), "_graphs")

    def missing(self, round_name: str, shape: int) -> tuple[int, ...]:
        """Pieces that should hold a graph for a shape and do not."""
        backend = self._backends.get(round_name)
        if backend is None:
            return ()
        if self.whole(round_name):
            return () if self.graphs(round_name, shape) else (0,)
        return tuple(sorted(self.indexes - set(self.eager()) - self._holding(shape)))

    def graphs(self, round_name: str, shape: int) -> int:
        """Graphs of a shape."""
        backend = self._backends.get(round_name)
        if backend is None:
            return 0
        if self.whole(round_name):
            return sum(key.size == shape for key in backend._graphs)
        return len(self._holding(shape))

    def count(self) -> int:
        """All graphs that exist."""
        pieces = sum(
            entry.cudagraph is not None for piece in self._alive() for entry in piece.concrete_size_entries.values()
        )
        return pieces + sum(len(backend._graphs) for name, backend in self._backends.items() if self.whole(name))

    def _holding(self, shape: int) -> set[int]:
        return {
            piece.piecewise_compile_index
            for piece in self._alive()
            if (entry := piece.concrete_size_entries.get(shape)) is not None and entry.cudagraph is not None
        }
