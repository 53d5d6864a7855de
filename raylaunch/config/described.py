"""What the sections of a configuration say of their settings, read from their docstrings."""

from __future__ import annotations

import inspect
import re

from pydantic import BaseModel

ROLE = re.compile(r":\w+:`~?([^`]+)`")
"""Of Sphinx, such as ``:class:`ConfigError```: Markdown has code in its place."""


def attributes_of(section: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What a class says of itself, and of each attribute, as one line of Markdown each."""
    text = inspect.cleandoc(section.__doc__ or "")
    about, _, attributes = text.partition("\nAttributes:\n")
    described: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w+: )", "\n" + attributes):
        name, separator, what = entry.strip().partition(": ")
        if separator:
            described[name] = _line(what)
    return _line(about), described


def _line(text: str) -> str:
    return ROLE.sub(r"`\1`", " ".join(text.split()).replace("``", "`")).replace("|", "\\|")
