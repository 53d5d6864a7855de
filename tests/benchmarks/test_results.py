"""What all measurements share: sizes from the command line."""

from __future__ import annotations

import pytest

from raylaunch.benchmarks.results import numbers_of, sizes_of
from raylaunch.errors import ConfigError


def test_numbers() -> None:
    assert numbers_of("--ranks", " 4, 2,,4", "numbers") == [4, 2, 4]
    assert numbers_of("--ranks", "", "numbers") == []
    assert sizes_of("--sizes", "4,2,4", "numbers") == [2, 4]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "two", "²", "9" * 5000])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="must be sizes such as 2,4"):
        sizes_of("--sizes", text, "sizes such as 2,4")
