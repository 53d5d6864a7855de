"""Docstrings as the site shows them."""

from __future__ import annotations

import re
from typing import Any

import griffe

from raylaunch.config.described import ROLE

SECTION = re.compile(r"\n(?=(?:Args|Attributes|Raises):\n)")


class OfTheProject(griffe.Extension):
    """Makes code of Sphinx's roles, such as ``:class:`Engine```, which Markdown does not know, and parts sections by
    the empty line that griffe wants."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub("\n\n", ROLE.sub(r"`\1`", obj.docstring.value))
