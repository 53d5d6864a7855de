"""Figures as an SVG. Needs matplotlib: ``pip install 'raylaunch[bench]'``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from raylaunch.errors import ConfigError


def require_plotting(file: Path | None) -> None:
    """Finds out before a measurement that it could not be drawn. Raises :class:`ConfigError`."""
    if file is not None and find_spec("matplotlib") is None:
        raise ConfigError("--plot", str(file), "needs matplotlib; pip install 'raylaunch[bench]'")


def draw(
    file: Path, title: str, x_label: str, y_label: str, figures: Mapping[str, Mapping[int, float]], note: str
) -> None:
    """Draws a line for each variant over sizes on a logarithmic axis, and ``note`` below. Raises ``OSError``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, column in figures.items():
        sizes = sorted(column)
        axes.plot(sizes, [column[size] for size in sizes], marker="o", label=name)
    every = sorted({size for column in figures.values() for size in column})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(size) for size in every])
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.text(0.01, -0.04, note, fontsize=7)
    figure.savefig(file, format="svg", bbox_inches="tight")
