"""What single tokens of a tokenizer are: their text, their bytes, and which of them an answer's text leaves out."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

REPLACEMENT = "\ufffd"
MOST_PENDING = 3  # bytes of a character in UTF-8 that are there before its last one
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_ANCHORS = ("a", "0")
_FURTHER_ENDS = ("<|eom_id|>", "<|content_model_end_sampling|>")


def _letters() -> dict[str, int]:
    """What byte-level tokenizers write for each byte: printable ones as they are, the others from U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {chr(256 + number): byte for number, byte in enumerate(others)}


LETTERS = _letters()


class Vocabulary:
    """The single tokens of a tokenizer. What was found out is kept.

    Args:
        tokenizer: has ``decode(ids, skip_special_tokens=...)``; of one that has no more the bytes of tokens that are
            part of a character are not known.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._hidden: dict[int, str] = {}
        self._texts: dict[int, str] = {}
        self._bytes: dict[int, bytes | None] = {}

    def hidden(self, token: int) -> str:
        """The text of a special token, which answers leave out; "" for any other token."""
        if token not in self._hidden:
            shown = self._decode([token], skip=True)
            self._hidden[token] = "" if shown else self._decode([token])
        return self._hidden[token]

    def text(self, token: int) -> str:
        """A token as text, as it is in the middle of one: with the space before it that is lost at the beginning."""
        if token not in self._texts:
            self._texts[token] = self._in_context(token)
        return self._texts[token]

    def first(self, token: int) -> str:
        """A token as text, as it is at the beginning of one."""
        return self._decode([token])

    def single_byte(self, token: int) -> bool:
        """Whether the token is a byte that stands for itself, of a tokenizer that falls back to them."""
        convert = getattr(self._tokenizer, "convert_ids_to_tokens", None)
        name = convert(token) if convert is not None else None
        return isinstance(name, str) and _BYTE.fullmatch(name) is not None

    def known_bytes(self, token: int) -> bytes | None:
        """The bytes of a token; None if it is no text by itself and its bytes cannot be told."""
        if token not in self._bytes:
            text = self.text(token)
            self._bytes[token] = self._spelled(token) if REPLACEMENT in text else text.encode("utf-8", "replace")
        return self._bytes[token]

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token; those of its text where they cannot be told."""
        known = self.known_bytes(token)
        return self.text(token).encode() if known is None else known

    def label(self, token: int) -> str:
        r"""How a token is shown: its text; ``bytes:\xf0\x9f`` where it is part of a character, as OpenAI does."""
        known, text = self.known_bytes(token), self.text(token)
        if known and REPLACEMENT in text and text.encode() != known:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in known)
        return text or f"token_id:{token}"

    def pending(self, ids: Sequence[int]) -> int:
        """How many bytes at the end of these tokens may be the beginning of a character; the most there can be where
        their bytes cannot be told."""
        data = b""
        for token in reversed(ids):
            known = self.known_bytes(token)
            if known is None:
                return MOST_PENDING
            data = known + data
            if len(data) > MOST_PENDING:
                break
        return pending_bytes(data)

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a text by the tokenizer's own account, as SGLang takes it: its end, and a few by name."""
        found = [getattr(self._tokenizer, "eos_token_id", None)]
        added: Mapping[str, int] = getattr(self._tokenizer, "get_added_vocab", dict)()
        found += [added.get(name) for name in _FURTHER_ENDS]
        return tuple(dict.fromkeys(one for one in found if isinstance(one, int)))

    def _in_context(self, token: int) -> str:
        anchor = self._anchor
        if anchor is not None:
            alone, both = self._decode([anchor]), self._decode([anchor, token])
            if both.startswith(alone):
                return both[len(alone) :]
        return self._decode([token])

    @functools.cached_property
    def _anchor(self) -> int | None:
        """A token that begins a text in which others are looked at."""
        for letter in _ANCHORS:
            with contextlib.suppress(TypeError, KeyError, ValueError, IndexError):
                token = int(self._tokenizer(letter, add_special_tokens=False)["input_ids"][-1])
                if self._decode([token], skip=True).strip() == letter:
                    return token
        return None

    def _spelled(self, token: int) -> bytes | None:
        """A token's bytes by its name in the vocabulary, if that gives the text that decoding gives."""
        convert = getattr(self._tokenizer, "convert_ids_to_tokens", None)
        name = convert(token) if convert is not None else None
        if isinstance(name, bytes):
            return name
        if not isinstance(name, str):
            return None
        if found := _BYTE.fullmatch(name):
            return bytes.fromhex(found[1])
        if all(letter in LETTERS for letter in name):
            data = bytes(LETTERS[letter] for letter in name)
            return data if data.decode("utf-8", "replace") == self.text(token) else None
        return None

    def _decode(self, ids: list[int], skip: bool = False) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip))


@functools.lru_cache(maxsize=4)
def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a tokenizer, one for all that ask."""
    return Vocabulary(tokenizer)


def pending_bytes(data: bytes) -> int:
    """How many bytes at the end of ``data`` are the beginning of a character in UTF-8 that its end cuts off: 0 to 3."""
    for size in range(1, min(MOST_PENDING, len(data)) + 1):
        if is_beginning(data[-size:]):
            return size
    return 0


def is_beginning(data: bytes) -> bool:
    """Whether ``data`` is the beginning of one character in UTF-8, and not the whole of it."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start == 0 and error.reason == "unexpected end of data"
    return False
