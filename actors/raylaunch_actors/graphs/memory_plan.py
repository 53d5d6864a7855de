"""Where the tensors of a recorded run live: those that are never alive together share bytes.

Pure Python: what a caching allocator does during a capture, as a function of live ranges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A block of memory and when it is needed.

    Attributes:
        key: names the block.
        nbytes: its size.
        first: step that writes it.
        last: last step that reads it, at least `first`. Both ends are inclusive: a step's output
            never shares bytes with the same step's inputs.
    """

    key: int
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryLayout:
    """Byte offset of each block, and the bytes that all of them need."""

    offsets: dict[int, int]
    nbytes: int


def place(blocks: Iterable[Lifetime], alignment: int = ALIGNMENT) -> MemoryLayout:
    """Places the blocks first-fit, in the order in which they are first written.

    Offsets are multiples of `alignment`; blocks whose lifetimes meet do not overlap.
    """
    offsets: dict[int, int] = {}
    alive: list[tuple[int, int, int]] = []  # offset, end, last step
    total = 0
    for block in sorted(blocks, key=lambda b: b.first):
        size = max((block.nbytes + alignment - 1) // alignment * alignment, alignment)
        alive = sorted(a for a in alive if a[2] >= block.first)
        offset = 0
        for start, end, _ in alive:
            if start - offset >= size:
                break
            offset = max(offset, end)
        offsets[block.key] = offset
        alive.append((offset, offset + size, block.last))
        total = max(total, offset + size)
    return MemoryLayout(offsets, total)
