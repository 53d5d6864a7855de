"""Which API keys a client can send, in ``Authorization: Bearer KEY``; others would lock everybody out."""

from __future__ import annotations

import unicodedata

VARIABLE = "RAYLAUNCH_API_KEY"


def problem_of(key: str) -> str:
    """Why no client can send this key, in words that do not tell it; "" if clients can."""
    if not key:
        return "is empty: give a key, or leave the setting out, which asks for none"
    if key.rstrip("\r\n") != key:
        return 'ends in a newline, which no client can send: take it off, as "$(cat FILE)" in a shell does'
    if key.strip() != key:
        return "begins or ends with white space, which is no part of what a client sends: take it off"
    if any(unicodedata.category(character) == "Cc" for character in key):
        return "holds a control character, which no client can send"
    if not key.isascii() and not _is_latin_1(key):
        return "holds a character that no HTTP header can carry: use letters, digits and signs of ASCII"
    return ""


def _is_latin_1(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True
