"""The figures of a start, by measurements that need no ranks; whole starts are in ``test_sweep``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from raylaunch.benchmarks.sweep.cell import Measurement, figures_of
from raylaunch.errors import RequestError, RequestFailed


@dataclass(frozen=True)
class Figure:
    size: int


def measure(size: int) -> Figure:
    if size == 2:
        raise RequestFailed("/generate answered 429")
    if size == 3:
        raise RequestError("too long\nby one")
    return Figure(size)


WANTED: list[Measurement] = [
    ("decode", (1, 2, 3, 4, 5), lambda size: "too many" if size == 4 else "", measure),
    ("serve", (6,), lambda _: "", measure),
]


def test_a_size_that_fails_is_left_out_and_the_others_are_measured() -> None:
    told: list[dict[str, Any]] = []
    figures, left_out = figures_of(WANTED, told.append, lambda: True)
    assert figures == {"decode": [{"size": 1}, {"size": 5}], "serve": [{"size": 6}]}
    assert left_out == [
        "decode 2: /generate answered 429",
        "decode 3: too long",
        "decode 4: too many",
    ]
    assert [one["at"] for one in told] == [*(f"decode {size}" for size in range(1, 6)), "serve 6"]


def test_ranks_that_are_lost_end_the_measurement() -> None:
    with pytest.raises(RequestFailed, match="429"):
        figures_of(WANTED, lambda _: None, lambda: False)
