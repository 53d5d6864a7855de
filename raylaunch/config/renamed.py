"""Settings that have another name now: the old one goes on working, and says so once it is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from raylaunch.errors import ConfigError

RENAMED = {
    "restarts": "recovery.rebuilds",
    "serve.while_rebuilding": "recovery.while_rebuilding",
    "serve.rebuild_wait": "recovery.give_up_s",
}

log = logging.getLogger(__name__)


def current_name(key: str) -> str:
    """The name that a setting has now, with a warning if it was given by an old one."""
    new = RENAMED.get(key)
    if new is not None:
        log.warning("the setting %s is %s now; its old name goes with the next release", key, new)
    return new or key


def with_current_names(data: Any) -> Any:
    """A configuration's data by the names of now. Raises :class:`ConfigError` if a setting is there by both."""
    for old, new in RENAMED.items():
        before, now = old.split("."), new.split(".")
        if not _has(data, before):
            continue
        data, value = _without(data, before)
        section = data.get(now[0]) or {}
        if not isinstance(section, Mapping) or now[1] in section:
            raise ConfigError(old, value, f"is the old name of {new}, which is set as well")
        data = {**data, now[0]: {**section, current_name(old).split(".")[1]: value}}
    return data


def _inner(data: Any, path: list[str]) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def _has(data: Any, path: list[str]) -> bool:
    inner = _inner(data, path[:-1])
    return isinstance(inner, Mapping) and path[-1] in inner


def _without(data: Mapping[str, Any], path: list[str]) -> tuple[dict[str, Any], Any]:
    """The data without one setting, and its value."""
    if len(path) == 1:
        return {key: value for key, value in data.items() if key != path[0]}, data[path[0]]
    inner, value = _without(data[path[0]], path[1:])
    return {**data, path[0]: inner}, value
