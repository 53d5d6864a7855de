"""Which of several replicas a request goes to: by how busy they are, or by whose cache has its prompt's beginning."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BLOCK_TOKENS, BLOCK_CHARACTERS = 16, 64
REMEMBERED_TOKENS = 1 << 20  # of a replica whose cache nobody has told the size of
BUSY, MUCH_MORE = 4, 2.0
PROMPTS = ("input_ids", "text", "prompt", "messages", "input")
"""Fields of HTTP requests that begin what the model reads."""


def least_loaded(loads: Mapping[int, int], after: int) -> int:
    """The replica with the fewest requests; of several the next ``after`` the one that was chosen last.

    Args:
        loads: requests of each replica that may be chosen; one at least.
    """
    return min(loads, key=lambda number: (loads[number], number <= after, number))


def by_prefix(found: Mapping[int, int], loads: Mapping[int, int], after: int) -> int:
    """The replica that has most of the prompt, of several the least loaded. One that is much more loaded than another,
    by more than ``BUSY`` requests and ``MUCH_MORE`` times as many, is passed over: computing a prompt again takes less
    than waiting there.

    Args:
        found: blocks of the prompt that each replica is likely to have.
        loads, after: as :func:`least_loaded`.
    """
    fewest = min(loads.values())
    able = {number: load for number, load in loads.items() if load <= max(fewest + BUSY, MUCH_MORE * fewest)}
    most = max(found.get(number, 0) for number in able)
    return least_loaded({number: load for number, load in able.items() if found.get(number, 0) == most}, after)


def blocks_of(prompt: str | Sequence[int]) -> list[int]:
    """A number for each whole block of a prompt, which stands for all of the prompt up to its end."""
    size, made, last = BLOCK_CHARACTERS if isinstance(prompt, str) else BLOCK_TOKENS, list[int](), 0
    for end in range(size, len(prompt) + 1, size):
        block = prompt[end - size : end]
        last = hash((last, block if isinstance(block, str) else tuple(block)))
        made.append(last)
    return made


class Remembered:
    """Blocks of the prompts that a replica had lately, as many as its cache holds."""

    def __init__(self) -> None:
        self._blocks = OrderedDict[int, None]()

    def found(self, blocks: Iterable[int]) -> int:
        """How many of the first blocks are among them."""
        count = 0
        for block in blocks:
            if block not in self._blocks:
                break
            count += 1
        return count

    def add(self, blocks: Iterable[int], kv_tokens: int) -> None:
        """A prompt goes there. ``kv_tokens`` is what its cache holds, or 0."""
        for block in blocks:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > (kv_tokens or REMEMBERED_TOKENS) // BLOCK_TOKENS:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """Its group is another one."""
        self._blocks.clear()


def prompt_in(body: bytes) -> str | list[int]:
    """What the prompt of an HTTP request begins with, of several the first; "" where none is found. What a body says
    wrongly is for others to tell."""
    try:
        fields = json.loads(body)
        given = next((fields[name] for name in PROMPTS if fields.get(name)), "")
    except (ValueError, AttributeError, RecursionError):
        return ""
    if isinstance(given, list) and (isinstance(given[0], str) or _is_ids(given[0])):
        given = given[0]
    return given if isinstance(given, str) or _is_ids(given) else json.dumps(given)


def _is_ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(one) is int for one in given)
