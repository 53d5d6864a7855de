"""From token ids to text, a few at a time, and the search for stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns the growing token ids of one request into text that never has to be taken back.

    Decoding a suffix of the ids alone can lose a leading space or split a character, so every piece is decoded
    together with the ids just before it, and held back while it ends in the middle of a character.
    """

    def __init__(self, tokenizer: Any, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids: list[int] = []
        self._prefix = 0  # ids before it have been given out, and are no longer needed to decode the next
        self._given = 0  # ids before it have been given out

    def push(self, ids: Sequence[int]) -> str:
        """The text that these ids add, as far as it is certain."""
        self._ids.extend(ids)
        return self._take(final=False)

    def flush(self) -> str:
        """What was held back."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        before = self._decode(self._ids[self._prefix : self._given])
        now = self._decode(self._ids[self._prefix :])
        if len(now) <= len(before) or (now.endswith(REPLACEMENT) and not final):
            return ""
        self._prefix, self._given = self._given, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=self._skip)) if ids else ""


class StopScanner:
    """Finds the first stop string in text that arrives in pieces, and holds back what may be the start of one.

    The first is the one complete first (of several, the longest): however the text is cut, the answer is the same.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that may be shown now. Sets ``stopped`` when a stop string was found; the rest is dropped."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return "" if self.stopped else held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of ``stop`` that ``text`` ends with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
