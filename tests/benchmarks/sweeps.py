"""Sweeps for tests, from the text of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raylaunch.benchmarks.sweep.plan import Cell, Sweep, base_of, cells_of, read_sweep


def sweep_of(folder: Path, text: str) -> tuple[Sweep, list[Cell]]:
    """The sweep of a file with this text, and its cells."""
    file = folder / "sweep.yaml"
    file.write_text(text)
    sweep, path = read_sweep(str(file))
    return sweep, cells_of(sweep, base_of(sweep, path), path)


def line_of(cell: Cell, start: int = 1, error: str | None = None, **more: Any) -> dict[str, Any]:
    """What is written of a start."""
    return {"cell": cell.id, "start": start, "settings": dict(cell.named), "error": error, **more}


def settings_of(cells: Sequence[Cell]) -> list[tuple[Any, ...]]:
    return [tuple(cell.settings.values()) for cell in cells]
