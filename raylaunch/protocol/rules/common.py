"""What the rules have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from raylaunch.protocol.phases import Arrival, LaunchPlan, Step, Violation

History = Mapping[Step, Sequence[Arrival]]
Rule = Callable[[LaunchPlan, Step, Sequence[Arrival], History], Violation | None]
F = TypeVar("F")


def facts_of(arrivals: Sequence[Arrival], kind: type[F]) -> dict[int, F]:
    """Facts by rank. Raises ``TypeError`` if a rank sent facts of another kind: a defect of the engine."""
    facts: dict[int, F] = {}
    for arrival in arrivals:
        if not isinstance(arrival.facts, kind):
            raise TypeError(f"rank {arrival.rank} at {arrival.step}: expected {kind.__name__}, got {arrival.facts!r}")
        facts[arrival.rank] = arrival.facts
    return facts


def odd_one(values: Mapping[int, Hashable]) -> int | None:
    """The first rank whose value is not the most common one (ties go to the lowest rank's), or None if all agree."""
    counts = Counter(values.values())
    if len(counts) < 2:
        return None
    usual = max(counts, key=lambda value: (counts[value], -min(r for r, v in values.items() if v == value)))
    return min(rank for rank, value in values.items() if value != usual)


def named_shape(step: Step, name: str) -> Step:
    """``step`` with the round and shape of a verdict's name such as ``"prefill 128"``; as it is for another name."""
    round_name, _sep, shape = name.partition(" ")
    if round_name not in ("prefill", "decode") or not shape.isdecimal():
        return step
    return Step(step.gate, "decode" if round_name == "decode" else "prefill", int(shape))


def count(number: int, noun: str) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def human_bytes(nbytes: int) -> str:
    """``nbytes`` with a binary unit: 512 B, 1.5 KiB, 73.0 MiB."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{nbytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{nbytes} B"
