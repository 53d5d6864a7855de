"""Which starts are due, and which of them may begin now: decided from plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raylaunch.benchmarks.sweep.plan import Cell
from raylaunch.cluster.placement import fits
from raylaunch.resolved import BundleRequest

CellStart = tuple[str, int]
"""A cell's id and the number of one of its starts, from 1."""
Requests = Sequence[BundleRequest]
"""What a cell asks of Ray: one request for each of its replicas."""
Line = Mapping[str, Any]
"""What is written of one start."""


def latest(lines: Iterable[Line], starts: int) -> dict[CellStart, Line]:
    """The last line of each start: one that was tried again has several. Those beyond ``starts``, of a file that asked
    for more, are left out."""
    return {(line["cell"], line["start"]): line for line in lines if line["start"] <= starts}


def due(cells: Sequence[Cell], starts: int, lines: Iterable[Line], *, retry_failed: bool) -> list[tuple[Cell, int]]:
    """The starts that there is no result of yet, in rounds over all cells. A cell of which one has failed has no others
    due, unless what has failed is to be tried again."""
    known = latest(lines, starts)
    failed = {cell for (cell, _), line in known.items() if line["error"]}
    result = []
    for start in range(1, starts + 1):
        for cell in cells:
            line = known.get((cell.id, start))
            if (line is None and cell.id not in failed) or (retry_failed and (line is None or line["error"])):
                result.append((cell, start))
    return result


def first_of_each(waiting: Iterable[tuple[Cell, int]]) -> list[tuple[Cell, int]]:
    """Each cell with the first of its starts that wait."""
    firsts: dict[str, tuple[Cell, int]] = {}
    for cell, start in waiting:
        firsts.setdefault(cell.id, (cell, start))
    return list(firsts.values())


def next_start(
    waiting: Sequence[Requests],
    starting: Sequence[Requests],
    running: int,
    most: int | None,
    free: Sequence[Mapping[str, float]],
) -> int | None:
    """Which of those that wait may start now; None if none may.

    Where nothing runs it is the first, whatever is free: its own launch waits for room, and says what is lacking.

    Args:
        waiting: what each asks for, in their order.
        starting: what those ask for that run and may not have got it yet, so that it still looks free.
        running: how many run.
        most: how many may; None for any number.
        free: of each node.
    """
    if not waiting or (most is not None and running >= most):
        return None
    if not running:
        return 0
    left = _taken([one for requests in starting for one in requests], free)
    if left is None:
        return None
    return next((index for index, requests in enumerate(waiting) if _taken(requests, left) is not None), None)


def _taken(requests: Requests, free: Sequence[Mapping[str, float]]) -> list[dict[str, float]] | None:
    """What is free once all have been placed, each bundle on the first node that has room; None if one has none."""
    left = [dict(node) for node in free]
    for request in requests:
        used, bundles = set[int](), list[Mapping[str, float]](request.bundles)
        if request.strategy == "STRICT_PACK":
            whole: Counter[str] = Counter()
            for bundle in bundles:
                whole.update(bundle)
            bundles = [whole]
        for bundle in bundles:
            able = (index for index, node in enumerate(left) if fits(node, bundle))
            found = next((index for index in able if request.strategy != "STRICT_SPREAD" or index not in used), None)
            if found is None:
                return None
            used.add(found)
            for name, amount in bundle.items():
                left[found][name] -= amount
    return left
