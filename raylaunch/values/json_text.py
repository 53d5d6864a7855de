"""JSON as users and other programs write it, and lines of it."""

from __future__ import annotations

import json
from typing import Any


def numbered_lines(data: bytes) -> list[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers. Raises ``UnicodeDecodeError``."""
    lines = data.decode("utf-8-sig").split("\n")  # other ends of lines may be in texts
    return [(number, line.removesuffix("\r")) for number, line in enumerate(lines, 1) if line.strip()]


def from_json(text: str | bytes) -> Any:
    """The value of ``text``. Raises ``ValueError`` if it is no JSON, or nested deeper than Python reads."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
