"""Docstrings as the site shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
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

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """What a class says of its own, without a docstring, is what the class that it comes from says."""
        for cls in _classes(pkg):
            for name, member in cls.members.items():
                if not member.is_alias and member.docstring is None:
                    said = (base.members[name].docstring for base in cls.mro() if name in base.members)
                    member.docstring = next(filter(None, said), None)


def _classes(scope: griffe.Module) -> Iterator[griffe.Class]:
    for one in scope.members.values():
        if isinstance(one, griffe.Module):
            yield from _classes(one)
        elif isinstance(one, griffe.Class):
            yield one
