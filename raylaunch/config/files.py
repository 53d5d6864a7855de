"""Configurations in files: where those that ship lie, and reading one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from raylaunch.config.paths import relative_to_file
from raylaunch.config.written import read
from raylaunch.errors import ConfigError

DEFAULT = "tiny-cpu.yaml"
"""The embedded default: the model that adds two numbers, on two CPU ranks."""


def shipped_configs() -> Path:
    """Folder of the configurations that ship: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(path: str | Path) -> Path:
    """``path`` if it is a file, else the shipped configuration of that name. Raises :class:`ConfigError`."""
    given = Path(os.path.expanduser(path))
    # "configs/tiny-cpu.yaml" and "tiny-cpu" name what ships, from any folder; any other path means what it says.
    shipped = shipped_configs() / given.name if given.parent in (Path(), Path("configs")) else given
    for candidate in (given, shipped, Path(f"{shipped}.yaml")):
        if os.path.isfile(candidate):  # Path's own raises where a folder above it may not be entered
            return candidate
    names = ", ".join(sorted(file.name for file in shipped_configs().glob("*.yaml")))
    raise ConfigError("CONFIG", str(path), f"no such file; configurations that ship: {names}")


def read_config(path: str | Path) -> dict[str, Any]:
    """The sections in the file that ``path`` names; its paths become absolute. Raises :class:`ConfigError`."""
    file = find_config(path)
    return relative_to_file(read_yaml(file), file.parent)


def read_yaml(file: Path) -> dict[str, Any]:
    """The file's mapping. Raises :class:`ConfigError` if it cannot be read or holds something else."""
    try:
        data = read(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("CONFIG", str(file), f"not readable as YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError("CONFIG", str(file), "the file must hold a mapping of sections such as model: and parallel:")
    return data
