from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raylaunch_actors.reference.rows import RowRanges


@given(st.integers(1, 60), st.lists(st.tuples(st.booleans(), st.integers(1, 20)), max_size=60))
def test_ranges_never_overlap_and_all_rows_return(capacity: int, actions: list[tuple[bool, int]]) -> None:
    ranges = RowRanges(capacity)
    taken: dict[int, int] = {}
    for take, number in actions:
        if take:
            start = ranges.allocate(number)
            used = {row for first, rows in taken.items() for row in range(first, first + rows)}
            if start is None:
                free = "".join("x" if row in used else "." for row in range(capacity))
                assert "." * number not in free, "a hole is large enough and was not used"
            else:
                own = set(range(start, start + number))
                assert not own & used
                assert max(own) < capacity
                taken[start] = number
        elif taken:
            start = sorted(taken)[number % len(taken)]
            del taken[start]
            ranges.give_back(start)
        assert ranges.taken == taken
        assert ranges.free == capacity - sum(taken.values())
    for start in taken:
        ranges.give_back(start)
    assert ranges.allocate(capacity) == 0, "the holes were not joined"


def test_mistakes_are_errors() -> None:
    ranges = RowRanges(4)
    with pytest.raises(KeyError):
        ranges.give_back(0)
    with pytest.raises(ValueError, match="at least one row"):
        ranges.allocate(0)
    with pytest.raises(ValueError, match="capacity"):
        RowRanges(0)


def test_scheduling_does_not_import_torch() -> None:
    code = "import sys, raylaunch_actors.reference.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
