"""Results as a drawing: the one file that knows matplotlib, which only ``--plot`` needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from raylaunch.errors import ConfigError
from raylaunch.terminal.outcome import written

FORMATS = (".svg", ".png", ".pdf")


def require_drawable(file: Path) -> None:
    """Finds out before measuring that nothing could be drawn. Raises :class:`ConfigError`."""
    if file.suffix.lower() not in FORMATS:
        raise ConfigError("--plot", str(file), f"must end in one of {', '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot", "matplotlib", 'is not installed: pip install "raylaunch[bench]"')


def draw(file: Path | None, lines: Mapping[str, Sequence[tuple[float, float]]], title: str, x: str, y: str) -> None:
    """Draws named lines of (x, y) points over logarithmic axes; the ending of ``file`` says in which format. Nothing if
    no file was asked for. Raises :class:`Unwritten`."""
    if file is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker=".", linestyle="--" if "eager" in name else "-", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize="small")
    with written("--plot", file):
        figure.savefig(file)
