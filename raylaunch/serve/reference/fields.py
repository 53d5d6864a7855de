"""What becomes of a request's fields beyond those that a server uses: every one is refused by name, unless it cannot
change the answer."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from raylaunch.serve.errors import shown, wrong

Unsupported = Mapping[str, tuple[Any, ...]]
Reasons = Mapping[str, str]


class Fields(BaseModel):
    """A request, or a part of one. Its fields are those that are used; the tables are about all others.

    Attributes:
        unsupported: fields that are known and cannot be honoured, with the values that ask for nothing; null always
            does.
        without_effect: fields that never change an answer, with the reason.
        instead: what to use in the place of a field.
    """

    # What is sent beyond the fields is kept, so that check_fields can name it.
    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})

    unsupported: ClassVar[Unsupported] = {}
    without_effect: ClassVar[Reasons] = {}
    instead: ClassVar[Reasons] = {}


def check_fields(request: Fields, where: str = "") -> None:
    """Refuses the first field that would be dropped, in the request or in any part of it.

    Args:
        where: what the field's name begins with, such as ``messages.2.``.
    Raises:
        ApiError: 400, with the field's path.
    """
    kind = type(request)
    for name, value in (request.model_extra or {}).items():
        _check_field(kind, where, name, value)
    for name in kind.model_fields:
        for path, part in _parts(name, getattr(request, name)):
            check_fields(part, f"{where}{path}.")


def _check_field(kind: type[Fields], where: str, name: str, value: Any) -> None:
    hint = f"; use {kind.instead[name]} instead" if name in kind.instead else ""
    if name in kind.unsupported:
        if value is None or any(same(value, nothing) for nothing in kind.unsupported[name]):
            return
        found = f" = {shown(value)}" if isinstance(value, str | int | float) else ""
        message = f"{where}{name}{found} is not supported by this server{hint or '; leave it out'}"
        raise wrong(message, where + name, "unsupported")
    if name in kind.without_effect:
        return
    if not hint:
        known = (*kind.model_fields, *kind.unsupported, *kind.without_effect)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
    path = where + shown(name)[1:-1]
    raise wrong(f"{path} is a field that this server does not know{hint}", path, "unknown_field")


def same(value: Any, other: Any) -> bool:
    """Equal as JSON has it, where true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _parts(name: str, value: Any) -> Iterator[tuple[str, Fields]]:
    if isinstance(value, Fields):
        yield name, value
    elif isinstance(value, list):
        for place, one in enumerate(value):
            if isinstance(one, Fields):
                yield f"{name}.{place}", one
