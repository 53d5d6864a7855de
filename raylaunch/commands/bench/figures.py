"""What every measurement needs: numbers from an option, the machine beside the figures, a file for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raylaunch.errors import ConfigError


def numbers_of(option: str, text: str, example: str) -> list[int]:
    """The positive whole numbers in ``2,4,8``. Raises :class:`ConfigError` that shows ``example``."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(option, text, f"must be {example}")
    return [int(part) for part in parts]


def machine_line(machine: dict[str, Any]) -> str:
    """One line about the machine of :func:`raylaunch.commands.machine.describe_machine`."""
    memory = machine["memory"]["total"] / (1 << 30)
    packages = ", ".join(f"{name} {machine['packages'][name]}" for name in ("ray", "torch"))
    return (
        f"{machine['host']}: {machine['cpus_usable']:g} CPUs, {memory:.0f} GiB, {len(machine['gpus'])} GPUs, "
        f"Python {machine['python']}, {packages}"
    )


def write_figures(file: Path | None, machine: dict[str, Any], figures: dict[str, Any]) -> None:
    """Writes the figures, and the machine they were taken on, as JSON; nothing if no file was asked for."""
    if file is not None:
        file.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n", encoding="utf-8")
