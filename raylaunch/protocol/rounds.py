"""Capture rounds: what is captured together, registered together, and in how many iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RoundName = Literal["prefill", "decode"]


@dataclass(frozen=True)
class RoundPlan:
    """One capture round: its shapes are captured largest first, each in exactly ``iterations`` iterations."""

    name: RoundName
    shapes: tuple[int, ...]
    iterations: int = 2
