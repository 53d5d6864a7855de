"""What all measurements share: sizes from the command line."""

from __future__ import annotations

import pytest

from raylaunch.benchmarks.results import numbers_of, percentile, sizes_of
from raylaunch.errors import ConfigError


def test_numbers() -> None:
    assert numbers_of("--ranks", " 4, 2,,4", "numbers") == [4, 2, 4]
    assert numbers_of("--ranks", "", "numbers") == []
    assert sizes_of("--sizes", "4,2,4", "numbers") == [2, 4]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "two", "²", pytest.param("9" * 5000, id="of many digits")])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="must be sizes such as 2,4"):
        sizes_of("--sizes", text, "sizes such as 2,4")


@pytest.mark.parametrize(
    ("count", "percent", "rank"), [(1, 99, 1), (2, 50, 1), (64, 99, 64), (100, 99, 99), (101, 99, 100), (300, 99, 297)]
)
def test_a_percentile_is_the_value_of_its_rank(count: int, percent: int, rank: int) -> None:
    values = [float(one) for one in range(count, 0, -1)]
    assert percentile(values, percent) == rank
