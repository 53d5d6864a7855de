"""Which replica gets a request, by plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from raylaunch.engine.routing import BLOCK_TOKENS, Remembered, blocks_of, by_prefix, least_loaded, prompt_in

LONG = list(range(5 * BLOCK_TOKENS + 3))


@pytest.mark.parametrize(
    ("loads", "after", "chosen"),
    [
        ({0: 0, 1: 0}, -1, 0),
        ({0: 0, 1: 0}, 0, 1),
        ({0: 0, 1: 0}, 1, 0),
        ({0: 3, 1: 2, 2: 2}, 1, 2),
        ({0: 3, 1: 2, 2: 2}, 2, 1),
        ({0: 1, 1: 2}, 0, 0),
        ({2: 9}, 2, 2),
    ],
)
def test_the_one_with_the_fewest_requests_is_chosen_and_equal_ones_in_turn(
    loads: Mapping[int, int], after: int, chosen: int
) -> None:
    assert least_loaded(loads, after) == chosen


@pytest.mark.parametrize(
    ("found", "loads", "chosen"),
    [
        ({0: 0, 1: 0}, {0: 1, 1: 2}, 0),
        ({0: 0, 1: 3}, {0: 1, 1: 2}, 1),
        ({0: 2, 1: 3}, {0: 0, 1: 4}, 1),
        ({0: 2, 1: 3}, {0: 0, 1: 5}, 0),  # much more loaded
        ({0: 2, 1: 3}, {0: 20, 1: 40}, 1),
        ({0: 2, 1: 3}, {0: 20, 1: 41}, 0),
        ({0: 3, 1: 3, 2: 3}, {0: 2, 1: 1, 2: 1}, 1),
        ({1: 9}, {0: 1, 2: 0}, 2),  # one that may not be chosen has it
    ],
)
def test_the_one_with_the_longest_beginning_unless_it_is_much_more_loaded(
    found: Mapping[int, int], loads: Mapping[int, int], chosen: int
) -> None:
    assert by_prefix(found, loads, -1) == chosen


def test_a_block_stands_for_all_that_is_before_it() -> None:
    blocks = blocks_of(LONG)
    assert len(blocks) == len(set(blocks)) == 5
    assert blocks_of(LONG[: 2 * BLOCK_TOKENS]) == blocks[:2]
    other = [99, *LONG[1:]]
    assert not set(blocks_of(other)) & set(blocks)
    assert blocks_of("a" * 63) == []
    assert blocks_of("a" * 64 + "b") == blocks_of("a" * 64 + "c" * 63)


def test_a_replica_remembers_what_its_cache_may_hold() -> None:
    one, blocks, others = Remembered(), blocks_of(LONG), blocks_of([one + 1 for one in LONG])
    assert one.found(blocks) == 0
    one.add(blocks[:3], 0)
    assert (one.found(blocks), one.found(others)) == (3, 0)
    one.add(others, 6 * BLOCK_TOKENS)
    assert (one.found(others), one.found(blocks)) == (5, 0), (
        "of the older one its end alone is left, which is no beginning"
    )
    one.clear()
    assert one.found(others) == 0


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"text": "12+30="}, "12+30="),
        ({"text": ["1", "2"]}, "1"),
        ({"input_ids": [1, 2]}, [1, 2]),
        ({"input_ids": [[1, 2], [3]]}, [1, 2]),
        ({"prompt": "a", "model": "m"}, "a"),
        ({"messages": [{"role": "user", "content": "hi"}]}, '[{"role": "user", "content": "hi"}]'),
        ({"text": None, "input_ids": []}, ""),
        ({"text": 5}, "5"),
        ([1], ""),
        ("x", ""),
    ],
)
def test_what_an_http_request_begins_with(body: Any, prompt: object) -> None:
    assert prompt_in(json.dumps(body).encode()) == prompt


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_has_no_prompt(body: bytes) -> None:
    assert prompt_in(body) == ""
