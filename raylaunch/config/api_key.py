"""The API key that the environment gives, for a server or for who asks one."""

from __future__ import annotations

import os

from raylaunch.errors import ConfigError
from raylaunch.values.api_key import VARIABLE, problem_of


def key_of_environment() -> str | None:
    """The key in ``RAYLAUNCH_API_KEY``, or None if it is not set. Raises :class:`ConfigError`; never shows the key."""
    key = os.environ.get(VARIABLE)
    if key is not None and (problem := problem_of(key)):
        raise ConfigError(VARIABLE, key, problem)
    return key
