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
    result = _copied(with_current_names(data))
    for item in overrides:
        key, separator, text = item.partition("=")
        path = current_name(key.strip()).split(".")
        if not separator or not all(path):
            raise ConfigError("--set", item, "must be KEY=VALUE, such as capture.prefill_tokens=[128,1032]")
        value = read_setting(".".join(path), text)
        section = result
        for name in path[:-1]:
            inner = section.get(name)
            if name in BY_KIND and isinstance(inner, str):
                inner = {"kind": inner}
            section[name] = inner if isinstance(inner, dict) else {}
            section = section[name]
        section[path[-1]] = value
    return result


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in data.items()}
