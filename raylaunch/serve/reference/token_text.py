"""Where tokens are in the text of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from raylaunch.frontends.text import LOOK_BACK
from raylaunch.frontends.vocabulary import Vocabulary, is_beginning, pending_bytes


class TextOffsets:
    """In which character of an answer's text each of its tokens begins.

    The tokens of one character begin in that one. Special tokens are no part of the text and move nothing.

    Args:
        prompt: what the answer goes on from. If nothing of it is text the first word has no space before it.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._bare = all(vocabulary.hidden(token) for token in prompt[-LOOK_BACK:])
        self._at = 0  # characters of the text that are complete
        self._begun = b""  # of the next one
        self._each = False  # whether each of these bytes is a character if there is no more of it

    def next(self, token: int) -> int:
        """The offset of the answer's next token."""
        if self._vocabulary.hidden(token):
            return self._at
        data = self._vocabulary.bytes_of(token)
        if self._bare:
            data = data.removeprefix(b" ") if not self._vocabulary.first(token).startswith(" ") else data
            self._bare = not data
        if self._begun and data and not _goes_on(self._begun, data):
            self._at += len(self._begun) if self._each else 1  # it stays broken
            self._begun = b""
        begin = self._at
        whole = self._begun + data
        self._begun = whole[len(whole) - pending_bytes(whole) :]
        self._each = bool(self._begun) and self._vocabulary.single_byte(token)
        self._at += len(whole[: len(whole) - len(self._begun)].decode("utf-8", "replace"))
        return begin


def _goes_on(begun: bytes, data: bytes) -> bool:
    """Whether ``data`` goes on with the character that was begun."""
    more = begun + data[:1]
    return is_beginning(more) or "\ufffd" not in more.decode("utf-8", "replace")
