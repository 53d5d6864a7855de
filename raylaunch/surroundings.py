"""What a launch needs of the process and the machine that it starts from, asked before Ray is: much of it Ray tells in
the middle of its own start, some of it by aborting."""

from __future__ import annotations

import os

from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError
from raylaunch.shadows import require_unshadowed


def check_surroundings(config: LaunchConfig) -> None:
    """Raises :class:`ConfigError` where a launch from here could not work, with what to do about it."""
    require_working_directory()
    require_unshadowed(sglang=config.engine.kind == "sglang")


def require_working_directory() -> None:
    """Raises :class:`ConfigError` if it was deleted: Ray's processes and the ranks start there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        gone = os.environ.get("PWD", "")
        raise ConfigError("working directory", gone, "no longer exists: cd to one that does") from None
