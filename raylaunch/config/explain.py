"""What pydantic found wrong, said in the words of the configuration."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError

from raylaunch.errors import ConfigError, UnknownKey
from raylaunch.values.masking import masked


def explain(error: ValidationError, root: type[BaseModel], source: str) -> ConfigError:
    """The first problem pydantic found in ``root``, as one message with key, value and what would be right."""
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    value = problem.get("input")
    if problem["type"] == "extra_forbidden":
        known = _keys_at(root, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        value = masked(close[0], value) if close else value  # a secret's name that was mistyped
        return UnknownKey(key, value, f"unknown key; {hint}known here: {', '.join(known)}", source)
    if problem["type"] == "missing":
        return ConfigError(key, None, "is required", source)
    message = problem["msg"].removeprefix("Value error, ")
    return ConfigError(key, value, message[0].lower() + message[1:], source)


def _keys_at(section: type[BaseModel], location: Sequence[str]) -> list[str]:
    for name in location:
        if name.isdigit():
            continue
        field = next((f for n, f in section.model_fields.items() if name in (n, f.alias)), None)
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return []
        section = inner
    return [field.alias or name for name, field in section.model_fields.items()]
