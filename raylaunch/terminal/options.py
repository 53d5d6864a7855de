"""Options that several commands share, and what is asked of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from raylaunch.errors import ConfigError

MaxNewTokens = Annotated[int | None, typer.Option(help="Most tokens to generate for a prompt.", show_default="128")]


def require_writable(option: str, file: Path | None) -> None:
    """Finds out before a launch that its result could not be written. Raises :class:`ConfigError`."""
    if file is None:
        return
    folder = file.absolute().parent
    try:
        if file.is_dir():
            raise ConfigError(option, str(file), "is a folder; give a file")
        if not folder.is_dir():
            raise ConfigError(option, str(file), f"there is no folder {folder}")
        if not os.access(file if file.exists() else folder, os.W_OK):
            raise ConfigError(option, str(file), "cannot be written")
    except OSError as error:  # such as of a folder above it that this user may not enter
        raise ConfigError(option, str(file), f"cannot be written: {error.strerror}") from None
