"""Capture rounds: what is captured together, registered together, and in how many iterations."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

RoundName = Literal["prefill", "decode"]


@dataclass(frozen=True)
class RoundPlan:
    """One capture round: its shapes are captured largest first, each in exactly ``iterations`` iterations."""

    name: RoundName
    shapes: tuple[int, ...]
    iterations: int = 2


def first_verified(shapes: Collection[int], others: int | None) -> frozenset[int]:
    """Those of a round's shapes that are verified before READY: the smallest, the largest, the two at each change of
    the distance between neighbours, and ``others`` of the rest, evenly spread. None takes all."""
    ordered = sorted(shapes)
    if others is None:
        return frozenset(ordered)
    edges = {*ordered[:1], *ordered[-1:]}
    for (low, middle), (_, high) in pairwise(pairwise(ordered)):
        if middle - low != high - middle:
            edges |= {middle, high}
    rest = [shape for shape in ordered if shape not in edges]
    sample = rest if others >= len(rest) else [rest[(2 * n + 1) * len(rest) // (2 * others)] for n in range(others)]
    return frozenset(edges).union(sample)
