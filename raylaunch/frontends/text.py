"""From token ids to text, a few at a time, and the search for stop strings in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from raylaunch.frontends.vocabulary import REPLACEMENT, vocabulary_of

CONTEXT = 6  # tokens of the prompt that the first ones of an answer are decoded together with
LOOK_BACK = 64  # tokens of the prompt among which they are looked for
LONGEST_WINDOW = 32  # tokens that are decoded together at most: a character has no more than four
CLEANED = re.compile(r"[ ']+(n[ ']*|[vr])?$")
"""What ``clean_up_tokenization_spaces`` may still change when more follows: it takes spaces away before signs, ``n't``
and the like, and around a quote."""


class Detokenizer:
    """Turns the growing token ids of one request into text that never has to be taken back.

    Decoding a suffix of the ids alone can lose a leading space or split a character, so every token is decoded
    together with those just before it, at the beginning with the prompt's last ones. Held back is what may become
    another character, and no more: an invalid sequence is shown as soon as it is one.

    Where a tokenizer falls back to single bytes, decoding a row of them shows each as a replacement character if one of
    them is invalid. Here characters that were complete before it stay what they are.

    ``tokenizers.DecodeStream`` (0.23.3) is not used: such a byte makes it raise an error, it never gives out what it
    holds back at the end, says what a prompt that ends inside a character began a second time, and knows neither
    ``clean_up_tokenization_spaces`` nor tokenizers that are not of that library.

    Args:
        prompt: what the answer goes on from.
    """

    def __init__(self, tokenizer: Any, skip_special_tokens: bool = True, prompt: Sequence[int] = ()) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._vocabulary = vocabulary_of(tokenizer)
        self._cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._ids = self._context(prompt)
        self._prefix = 0  # ids before it have been given out, and are no longer needed to decode the next
        self._given = len(self._ids)  # ids before it have been given out
        self._ahead = 0  # characters of the ids behind it that have been given out
        self._inside = self._decode(self._ids).endswith(REPLACEMENT)  # a character that the prompt began

    def push(self, ids: Sequence[int]) -> str:
        """The text that these ids add, as far as it is certain."""
        return "".join(self._push(token) for token in ids)

    def flush(self) -> str:
        """What was held back."""
        text = self.held
        self._commit(len(self._ids))
        return text

    @property
    def held(self) -> str:
        """What is held back, as it is shown if nothing follows."""
        return self._decode_new()[1][self._ahead :]

    def _push(self, token: int) -> str:
        self._ids.append(token)
        now, new = self._decode_new()
        held = min(self._undecided(now), max(0, len(new) - self._ahead))
        end = len(new) - held
        text = new[self._ahead : end]
        self._ahead = max(self._ahead, end)
        if not new:
            self._given = len(self._ids)  # it has no text; what comes before it is still needed to decode the next
        elif not held:
            self._commit(len(self._ids))
        elif len(self._ids) - self._given > 1:
            self._commit_decided(now[: len(now) - held])
        if len(self._ids) - self._prefix > LONGEST_WINDOW:  # of tokens that never become text: nothing to wait for
            text += self.flush()
            self._prefix, self._given = len(self._ids) - CONTEXT, len(self._ids)
        return text

    def _decode_new(self) -> tuple[str, str]:
        """The text of all ids that are still looked at, and how it goes on from what was given out before them."""
        before = self._decode(self._ids[self._prefix : self._given])
        now = self._decode(self._ids[self._prefix :])
        if now.startswith(before):
            return now, now[len(before) :]
        certain = before.rstrip(REPLACEMENT)  # the prompt may end inside a character
        if certain != before and now.startswith(certain):
            return now, now[len(certain) :]
        self._prefix = self._given  # what was given out would be another text now: it stays
        now = self._decode(self._ids[self._prefix :])
        return now, now

    def _undecided(self, text: str) -> int:
        """How many characters at the end of the text may become others."""
        replaced = len(text) - len(text.rstrip(REPLACEMENT))
        if replaced:
            ids = self._ids[self._prefix :]
            if self._skip:  # a special token between the bytes of a character does not part them
                ids = [token for token in ids if not self._vocabulary.hidden(token)]
            return min(replaced, self._vocabulary.pending(ids))
        found = CLEANED.search(text) if self._cleans else None
        return len(found[0]) if found else 0

    def _commit(self, end: int) -> None:
        if end > self._given:
            whole = not self._inside and self._decode(self._ids[self._given : end])  # a space alone is stripped
            self._prefix, self._given = self._given if whole else self._prefix, end
            self._inside = False
        self._ahead = 0
        if self._prefix > LONGEST_WINDOW:
            self._ids, self._given, self._prefix = self._ids[self._prefix :], self._given - self._prefix, 0

    def _commit_decided(self, decided: str) -> None:
        """Leaves only the ids behind ``decided``, if it ends with one: else a row of invalid ones would grow."""
        for end in range(len(self._ids) - 1, max(self._given, len(self._ids) - 4), -1):
            if self._decode(self._ids[self._prefix : end]) == decided:
                self._commit(end)
                return

    def _context(self, prompt: Sequence[int]) -> list[int]:
        """The prompt's last tokens that have text, from the beginning of a character on."""
        last = list(prompt[-LOOK_BACK:])
        if self._skip:
            last = [token for token in last if not self._vocabulary.hidden(token)]
        start = max(0, len(last) - CONTEXT)
        while start and self._decode(last[start:]).startswith(REPLACEMENT) and len(last) - start < 2 * CONTEXT:
            start -= 1
        return last[start:]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=self._skip)) if ids else ""


class StopScanner:
    """Finds the first stop string in text that arrives in pieces, and holds back what may be the start of one.

    The first is the one complete first (of several, the longest): however the text is cut, the answer is the same.

    Attributes:
        matched: the stop string that was found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._beginnings = [_Beginning(stop) for stop in stops]
        self._held = ""
        self._hidden: list[bool] = []  # of each character that is held
        self.matched: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.matched is not None

    def push(self, text: str, *, hidden: bool = False) -> str:
        """The text that may be shown now; the rest is dropped when a stop string was found.

        Args:
            hidden: this text is looked at and never shown, as that of special tokens.
        """
        if self.stopped or not self._stops:
            return "" if self.stopped or hidden else text
        new, text, marks = text, self._held + text, self._hidden + [hidden] * len(text)
        if first := self._first(text):
            self.matched, end = first
            self._held, self._hidden = "", []
            return _shown(text[:end], marks)
        end = len(text) - max(beginning.push(new) for beginning in self._beginnings)
        self._held, self._hidden = text[end:], marks[end:]
        return _shown(text[:end], marks)

    def would_stop(self, text: str) -> bool:
        """Whether this text, if it came now, would complete a stop string."""
        return not self.stopped and self._first(self._held + text) is not None

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        text = _shown(self._held, self._hidden)
        self._held, self._hidden = "", []
        return "" if self.stopped else text

    def _first(self, text: str) -> tuple[str, int] | None:
        """The first stop string in a text, and where it begins."""
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        return (min(found)[2], min(found)[1]) if found else None


class AnswerText:
    """The text of one answer as its tokens come, up to a stop string.

    Special tokens have no part in it, and stop strings are found in them all the same: they are looked for in the text
    with special tokens, and in the one that is shown.

    Attributes:
        matched: the stop string that was found; nothing is shown any more then.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._vocabulary = vocabulary_of(tokenizer)
        self._detokenizer = Detokenizer(tokenizer, prompt=prompt)
        self._whole, self._shown = StopScanner(stops), StopScanner(stops)

    @property
    def matched(self) -> str | None:
        return self._whole.matched or self._shown.matched

    def push(self, ids: Sequence[int]) -> str:
        """The text that these tokens add, as far as it is certain."""
        text = "".join(self._push(token) for token in ids)
        return text + self._shown.flush() if self.matched else text

    def finish(self, ended_by: int | None = None) -> str:
        """What was held back.

        Args:
            ended_by: the token that ended the answer and is no part of it; a stop string may end with it.
        """
        text = self._show(self._detokenizer.flush())
        if ended_by is not None:
            text += self._show(self._vocabulary.text(ended_by), hidden=True)
        return text + self._shown.push(self._whole.flush()) + self._shown.flush()

    def _push(self, token: int) -> str:
        if self.matched:
            return ""
        hidden = self._vocabulary.hidden(token)
        if not hidden:
            return self._show(self._detokenizer.push([token]))
        # A character may go on behind a special token, as in decoding all at once; but not behind the end.
        flushed = self._detokenizer.flush() if self._whole.would_stop(self._detokenizer.held + hidden) else ""
        return self._show(flushed) + self._show(hidden, hidden=True)

    def _show(self, text: str, *, hidden: bool = False) -> str:
        return self._shown.push(self._whole.push(text, hidden=hidden))


def _shown(text: str, hidden: Sequence[bool]) -> str:
    return "".join(letter for letter, one in zip(text, hidden, strict=False) if not one)


class _Beginning:
    """How much of a stop string a text ends with, which does not hold all of it: the longest such beginning.

    Knuth, Morris and Pratt's (https://doi.org/10.1137/0206024): each character is looked at once, however the stop
    string repeats itself.
    """

    def __init__(self, stop: str) -> None:
        self._stop, self._size = stop, 0
        self._shorter = [0]  # of a beginning of this many characters and one, the next one that its end is

    def push(self, text: str) -> int:
        """Characters of the beginning, with this text behind all earlier ones."""
        for letter in text:
            while self._size and self._stop[self._size] != letter:
                self._size = self._shorter[self._size - 1]
            if self._stop[self._size] == letter:
                self._size += 1
                self._know()
        return self._size

    def _know(self) -> None:
        """Finds out what is next to a beginning of the size that was reached."""
        while len(self._shorter) < self._size:
            letter, size = self._stop[len(self._shorter)], self._shorter[-1]
            while size and self._stop[size] != letter:
                size = self._shorter[size - 1]
            self._shorter.append(size + (self._stop[size] == letter))
