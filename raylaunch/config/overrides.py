"""Settings changed one by one: ``section.key=value``, as ``--set`` takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from raylaunch.config.renamed import current_name, with_current_names
from raylaunch.config.written import read_setting
from raylaunch.errors import ConfigError

BY_KIND = ("engine", "communicator")  # sections that may be written as their kind: ``engine: reference``


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``data`` with ``section.key=value`` settings applied; values are read as YAML, but for text.
    Raises :class:`ConfigError`."""
    return changed(data, map(_parsed, overrides))


def _parsed(item: str) -> tuple[str, Any]:
    key, separator, text = item.partition("=")
    key = current_name(key.strip())
    if not separator or not all(key.split(".")):
        raise ConfigError("--set", item, "must be KEY=VALUE, such as capture.prefill_tokens=[128,1032]")
    return key, read_setting(key, text)


def changed(data: Mapping[str, Any], changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A copy of ``data`` with values by dotted name put in, in their order."""
    result = _copied(with_current_names(data))
    for key, value in changes:
        path, section = current_name(key).split("."), result
        for name in path[:-1]:
            inner = section.get(name)
            if name in BY_KIND and isinstance(inner, str):
                inner = {"kind": inner}
            section[name] = inner if isinstance(inner, dict) else {}
            section = section[name]
        section[path[-1]] = value
    return result


def value_at(data: Any, key: str) -> Any:
    """The value of this dotted name; None if there is none."""
    for name in key.split("."):
        data = data.get(name)
    return data


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in data.items()}
