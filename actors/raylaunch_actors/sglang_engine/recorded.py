"""The all-reduce inputs that graphs recorded: how many, how large and in which order, by round and shape."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from raylaunch.protocol import ShapeInputs


@dataclass
class ShapeLog:
    """The inputs of one shape's graphs."""

    sizes: list[int] = field(default_factory=list)
    _order: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, nbytes: int, tensor_shape: Sequence[int], dtype: str) -> None:
        """Takes note of an input."""
        self.sizes.append(nbytes)
        self._order.update(f"{tuple(tensor_shape)} {dtype}\n".encode())

    def facts(self) -> ShapeInputs:
        """What peers must agree on."""
        return ShapeInputs(len(self.sizes), sum(self.sizes), self._order.hexdigest()[:16])


class Recorded:
    """The inputs recorded so far."""

    def __init__(self) -> None:
        self._shapes: dict[str, dict[int, ShapeLog]] = {}

    def add(self, round_name: str, shape: int, nbytes: int, tensor_shape: Sequence[int], dtype: str) -> None:
        """Takes note of an input."""
        self._shapes.setdefault(round_name, {}).setdefault(shape, ShapeLog()).add(nbytes, tensor_shape, dtype)

    def facts(self, round_name: str) -> dict[int, ShapeInputs]:
        """By shape of a round."""
        return {shape: log.facts() for shape, log in self._shapes.get(round_name, {}).items()}

    def sizes(self, round_name: str) -> dict[int, tuple[int, ...]]:
        """Bytes of each input in order, by shape of a round."""
        return {shape: tuple(log.sizes) for shape, log in self._shapes.get(round_name, {}).items()}

    def count(self, round_name: str | None = None) -> int:
        """Inputs of a round, or of all."""
        rounds = self._shapes.values() if round_name is None else [self._shapes.get(round_name, {})]
        return sum(len(log.sizes) for shapes in rounds for log in shapes.values())
