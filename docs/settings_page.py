"""The page of all settings, made of the sections' docstrings.

python docs/settings_page.py > docs/settings.md
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raylaunch.config.described import attributes_of
from raylaunch.config.launch_config import LaunchConfig
from raylaunch.config.types import Section

HEAD = """# Settings

Made from `raylaunch/config/launch_config.py` and `raylaunch/config/sections.py`; a test keeps it true. A configuration
is a YAML file with these keys, and `--set SECTION.KEY=VALUE` changes one of them on the command line. A wrong one is a
message that names the key, its value and what would be right, before anything starts.
"""


def settings_page() -> str:
    """All settings as Markdown: a table for each section, in the order of the classes."""
    return HEAD + "".join(f"\n{part}" for part in _sections(LaunchConfig, ""))


def _sections(section: type[Section], path: str) -> Iterator[str]:
    about, described = attributes_of(section)
    rows, inner = [], []
    for name, field in section.model_fields.items():
        key = field.alias or name
        below = _section_of(field)
        if below is not None:
            inner.append((below, f"{path}{key}."))
        if below is None or _is_list(field):
            text = described.get(name) or f"how long the phase {key.upper()} may take"
            rows.append(f"| `{path}{key}` | {_type(field)} | {_default(field)} | {text} |\n")
    title = f"`{path.rstrip('.')}`" if path else "The launch itself"
    table = "| setting | value | default | what it is |\n|---|---|---|---|\n" + "".join(rows) if rows else ""
    yield f"## {title}\n\n{about}\n\n{table}"
    for below, where in inner:
        yield from _sections(below, where)


def _section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, by itself or in a list."""
    for one in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return typing.cast(type[Section], one)
    return None


def _is_list(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is tuple


def _type(field: FieldInfo) -> str:
    return _name(field.annotation).replace("|", "\\|")


def _name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _name(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is tuple or origin is list:
        return f"list of {_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    if arguments:  # a union
        return " or ".join(_name(one) for one in arguments if one is not type(None))
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "SecretStr": "text, secret"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, "section" if _section_class(annotation) else name)


def _section_class(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:,}`" if isinstance(value, int) and value >= 10_000 else f"`{value}`"


if __name__ == "__main__":
    print(settings_page(), end="")
