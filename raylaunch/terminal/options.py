"""Arguments and options that several commands share, and what becomes of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.errors import ConfigError

if TYPE_CHECKING:
    from raylaunch.config import LaunchConfig

Config = Annotated[
    str | None,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file, or the name of one that ships.",
        show_default="a tiny model, 2 CPU ranks",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as capture.enabled=false. Repeatable."),
]
Debug = Annotated[
    str | None,
    typer.Option(
        metavar="cuda",
        help="Debug mode: a GPU writes a core dump where a kernel fails, and every kernel is waited for.",
        show_default="off",
    ),
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Most tokens to generate for a prompt.", show_default="128")]


def load_config(config: str | None, settings: Sequence[str] | None, debug: str | None = None) -> LaunchConfig:
    """The configuration that a command line asks for, the embedded default without one.

    Args:
        debug: the mode that ``--debug`` asks for.
    Raises:
        ConfigError: it cannot be read, or is wrong.
    """
    from raylaunch.config import LaunchConfig

    changes = settings or ()
    chosen = LaunchConfig.default(changes) if config is None else LaunchConfig.from_yaml(config, changes)
    return chosen if debug is None else chosen.replace({"debug": debug})


def require_writable(option: str, file: Path | None) -> None:
    """Finds out before a launch that its result could not be written. Raises :class:`ConfigError`."""
    if file is None:
        return
    folder = file.absolute().parent
    if file.is_dir():
        raise ConfigError(option, str(file), "is a folder; give a file")
    if not folder.is_dir():
        raise ConfigError(option, str(file), f"there is no folder {folder}")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise ConfigError(option, str(file), "cannot be written")
