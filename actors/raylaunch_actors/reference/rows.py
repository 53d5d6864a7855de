"""Which rows of the KV cache are free: contiguous ranges, first fit. Plain Python, no torch."""

from __future__ import annotations

from bisect import bisect_left, insort


class RowRanges:
    """Hands out contiguous ranges of ``capacity`` rows.

    A request keeps one range for its whole life, so attention reads one slice and nothing is ever preempted.
    The price is fragmentation: a request may wait although enough rows are free in total, until its
    neighbours have finished.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity = {capacity}: a KV cache needs at least one row")
        self.capacity = capacity
        self._holes: list[tuple[int, int]] = [(0, capacity)]  # (start, rows), ordered by start, never adjacent
        self._taken: dict[int, int] = {}  # start -> rows

    def allocate(self, rows: int) -> int | None:
        """First row of a free range of ``rows`` rows, now taken; None if no hole is large enough."""
        if rows < 1:
            raise ValueError(f"rows = {rows}: a range has at least one row")
        for index, (start, length) in enumerate(self._holes):
            if length >= rows:
                if length == rows:
                    del self._holes[index]
                else:
                    self._holes[index] = (start + rows, length - rows)
                self._taken[start] = rows
                return start
        return None

    def give_back(self, start: int) -> None:
        """Frees the range that starts at ``start``. Raises KeyError if no taken range starts there."""
        rows = self._taken.pop(start)
        index = bisect_left(self._holes, (start, 0))
        if index < len(self._holes) and self._holes[index][0] == start + rows:
            rows += self._holes.pop(index)[1]
        if index > 0 and sum(self._holes[index - 1]) == start:
            start, before = self._holes.pop(index - 1)
            rows += before
        insort(self._holes, (start, rows))

    @property
    def free(self) -> int:
        """Free rows in total, in one range or in several."""
        return sum(rows for _, rows in self._holes)

    @property
    def taken(self) -> dict[int, int]:
        """The ranges in use: first row -> number of rows (a copy)."""
        return dict(self._taken)
