"""What looks like a secret, and how it is shown: not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS")
FREE_FORM = ("environment",)
"""Settings whose values may be secrets by names of the user's: what is no mapping there has no names to tell by."""
_NAME = re.compile(r"[\w.-]+")
_BETWEEN = re.compile(r"[^A-Za-z0-9]+")
_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def looks_secret(name: str) -> bool:
    """Whether a setting or a variable of this name, such as ``HF_TOKEN`` or ``serve.api_key``, holds a secret.

    A word of the name must end like one of a secret: ``kv_tokens`` and ``TOKENIZERS_PARALLELISM`` do not.
    """
    return any(part.upper().endswith(WORDS) for part in _BETWEEN.split(name))


def masked(name: str, value: Any) -> Any:
    """``value`` of the setting ``name`` as it may be shown: without secrets, its own or of what it holds."""
    if value is None or value == "":
        return value
    if looks_secret(name):
        return HIDDEN
    if isinstance(value, Mapping):
        return {key: masked(str(key), inner) for key, inner in value.items()}
    if name in FREE_FORM:
        return HIDDEN
    if type(value) in (list, tuple):
        return type(value)(masked("", inner) for inner in value)
    if name == "--set" and isinstance(value, str):
        return without_login(_before_secret(value))
    return without_login(value) if isinstance(value, str) else value


def without_login(text: str) -> str:
    """``text`` with the user and the password of every URL in it hidden."""
    return _LOGIN.sub(HIDDEN, text)


def _before_secret(setting: str) -> str:
    """A KEY=VALUE that could not be read, up to the name of a secret in it."""
    ends = (found.end() for found in _NAME.finditer(setting) if looks_secret(found[0]))
    end = next(ends, len(setting))
    return setting[:end] + (HIDDEN if end < len(setting) else "")
