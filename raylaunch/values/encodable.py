"""Text that is none: halves of surrogate pairs, which no tokenizer, message or file takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def problem_of(value: Any) -> str:
    """What is wrong with the first text that cannot be encoded, in a value of plain data; "" if all can be.

    Python has such text from JSON that names half of a pair, or from bytes that are no UTF-8 on a command line.
    """
    if isinstance(value, str):
        return _problem(value)
    if isinstance(value, Mapping):
        return next((found for pair in value.items() for one in pair if (found := problem_of(one))), "")
    if isinstance(value, list | tuple):
        return next((found for one in value if (found := problem_of(one))), "")
    return ""


def _problem(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return f"character {error.start} is the byte 0x{code - 0xDC00:02x}, which is no UTF-8"
        return f"character {error.start} is half of a surrogate pair (\\u{code:04x}), which is no character"
    return ""
