"""The results of a sweep for people: a table of its cells, and a drawing of each measured quantity."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from raylaunch.benchmarks.sweep.plan import Cell
from raylaunch.benchmarks.sweep.schedule import Line, latest
from raylaunch.protocol.rules.common import count
from raylaunch.terminal.launch_options import SETTINGS
from raylaunch.terminal.outcome import written

WIDE = 1 << 16
OPTIONS = {key: name for name, key in SETTINGS.items()}
ALIKE_NEEDS = 2


@dataclass(frozen=True)
class Quantity:
    """Something that is measured.

    Attributes:
        measure: under which its figures are.
        field: that holds it, and in ``unit`` after ``factor``.
        size: field of what it was measured at, in words ``sizes``; "" where there is one figure in each start.
    """

    measure: str
    field: str
    title: str
    unit: str
    size: str = ""
    sizes: str = ""
    factor: float = 1.0

    @property
    def file(self) -> str:
        """A name for its drawing."""
        return f"{self.measure}-{self.field.replace('_', '-')}.png"


READY = Quantity("launch", "ready", "ready", "s")
QUANTITIES = (
    READY,
    Quantity("prefill", "median", "first token", "ms", "tokens", "prompt tokens", 1e3),
    Quantity("decode", "tokens_per_second", "decode", "tokens/s", "requests", "requests"),
    Quantity("serve", "tokens_per_second", "served", "tokens/s", "concurrency", "requests at a time"),
    Quantity("serve", "first_token", "served, first token", "ms", "concurrency", "requests at a time", 1e3),
    Quantity("serve", "each_token", "served, each token", "ms", "concurrency", "requests at a time", 1e3),
)


@dataclass(frozen=True)
class Row:
    """A cell and the lines of its starts, the last of each."""

    cell: Cell
    lines: Sequence[Line]

    @property
    def error(self) -> str:
        """Why it has failed; "" if it has not."""
        return next((str(line["error"]) for line in self.lines if line["error"]), "")

    def values(self, quantity: Quantity) -> dict[int | None, list[float]]:
        """What was measured, by size, of each start."""
        found: dict[int | None, list[float]] = {}
        for line in self.lines:
            figures = (line.get("figures") or {}).get(quantity.measure, [])
            for one in figures if isinstance(figures, list) else [figures]:
                size = one[quantity.size] if quantity.size else None
                found.setdefault(size, []).append(one[quantity.field] * quantity.factor)
        return found


def rows_of(cells: Sequence[Cell], lines: Sequence[Line], starts: int) -> list[Row]:
    """A row for each cell, with what is known of its ``starts``."""
    known = latest(lines, starts).items()
    return [Row(cell, [line for (own, _), line in known if own == cell.id]) for cell in cells]


def how_far(rows: Sequence[Row], starts: int) -> str:
    """How many starts have a result, be it an error, in words."""
    return f"{sum(len(row.lines) for row in rows)} of {len(rows) * starts} starts have a result"


def columns_of(rows: Sequence[Row]) -> dict[str, str]:
    """The settings that vary, and what each is called: as its option, or by the last part of its name."""
    keys = list(rows[0].cell.shown) if rows else []
    ends = Counter(key.rpartition(".")[2] for key in keys)
    return {key: OPTIONS.get(key) or _short(key, ends) for key in keys}


def _short(key: str, ends: Mapping[str, int]) -> str:
    last = key.rpartition(".")[2]
    return last if ends[last] == 1 and last not in ("enabled", "kind") else key


def shown(value: Any) -> str:
    """A setting's value, as YAML has it; what is empty is a dash."""
    if value is None or value == []:
        return "-"
    return str(yaml.safe_dump(value, default_flow_style=True, width=WIDE).removesuffix("\n").removesuffix("\n..."))


def label(cell: Cell, columns: Mapping[str, str]) -> str:
    """A cell in words, such as ``tp 2, capture.enabled false``."""
    return ", ".join(f"{name} {shown(cell.shown[key])}" for key, name in columns.items()) or cell.id


def with_spread(values: Sequence[float]) -> str:
    """The median of several starts, and half of their range as a part of it."""
    middle = median(values)
    text = f"{middle:.{0 if middle >= 100 else 1 if middle >= 10 else 2}f}"
    if len(values) < ALIKE_NEEDS or not middle:
        return text
    return f"{text} ±{(max(values) - min(values)) / 2 / middle:.0%}"


def tables(rows: Sequence[Row], starts: int, name: str) -> list[tuple[str, Any]]:
    """Titles and tables for a rich console, a row for each cell: one of how far each is and how long its launches took,
    and one of each quantity that is measured at sizes, which are its columns."""
    done, failed = sum(len(row.lines) for row in rows if not row.error), sum(bool(row.error) for row in rows)
    title = f"{name}: {count(len(rows), 'cell')}, {done} of {len(rows) * starts} starts measured"
    title += f", {count(failed, 'cell')} failed" if failed else ""
    states = ["failed" if row.error else f"{len(row.lines)}/{starts}" for row in rows]
    ready = [row.values(READY).get(None) for row in rows]
    figures = [[state, _figure(values)] for state, values in zip(states, ready, strict=True)]
    made = [(title, _table(["starts", "ready, s"], rows, figures))]
    for quantity in QUANTITIES:
        able = [row for row in rows if row.values(quantity)]
        if quantity.size and able:
            sizes = sorted({size for row in able for size in row.values(quantity) if size is not None})
            figures = [[_figure(row.values(quantity).get(size)) for size in sizes] for row in able]
            title = f"{quantity.title}, {quantity.unit}, by {quantity.sizes}"
            made.append((title, _table([str(size) for size in sizes], able, figures)))
    return made


def _figure(values: Sequence[float] | None) -> str:
    return with_spread(values) if values else "-"


def _table(heads: Sequence[str], rows: Sequence[Row], figures: Sequence[Sequence[str]]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made, columns = Table(box=box.SIMPLE_HEAD, pad_edge=False), columns_of(rows)
    for column in columns.values():
        made.add_column(escape(column), overflow="fold")
    for head in heads:
        made.add_column(head, justify="right")
    for row, cells in zip(rows, figures, strict=True):
        made.add_row(*(escape(shown(row.cell.shown[key])) for key in columns), *cells)
    return made


def in_words(row: Row) -> str:
    """What was measured, in a line."""
    figures = [(quantity, size, values) for quantity in QUANTITIES for size, values in row.values(quantity).items()]
    return ", ".join(
        f"{quantity.title}{'' if size is None else f' {size}'} {with_spread(values)} {quantity.unit}"
        for quantity, size, values in figures
    )


def notes(rows: Sequence[Row], starts: int) -> list[str]:
    """What the table does not say: errors, what is left out, and what makes figures hard to compare."""
    columns, lines = columns_of(rows), [line for row in rows for line in row.lines]
    said = [f"failed: {label(row.cell, columns)}: {row.error}" for row in rows if row.error]
    said += dict.fromkeys(
        f"left out: {label(row.cell, columns)}: {why}"
        for row in rows
        for line in row.lines
        for why in line.get("left_out", [])
    )
    if starts > 1 and any(line.get("figures") for line in lines):
        said.append("medians over the starts of a cell, ± half of their range")
    if shared := sharing(lines):
        said.append(
            f"{shared} starts shared a node with others meanwhile, which disturbs: side_by_side: 1 measures alone"
        )
    versions = dict.fromkeys(_versions(line) for line in lines if line.get("versions"))
    if len(versions) > 1:
        said.append(f"not all were measured with the same versions: {'; '.join(versions)}")
    return said


def _versions(line: Line) -> str:
    return ", ".join(f"{name} {version}" for name, version in line["versions"].items())


def sharing(lines: Sequence[Line]) -> int:
    """How many starts ran beside another one on a node of theirs."""
    nodes = {f"{line['cell']}/{line['start']}": {one["node"] for one in line.get("ranks", [])} for line in lines}
    return sum(
        any(nodes[f"{line['cell']}/{line['start']}"] & nodes.get(other, set()) for other in line.get("beside", []))
        for line in lines
    )


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same for programs: of each cell the settings that vary, its error, and each quantity's values by size."""
    return [
        {
            "cell": row.cell.id,
            "settings": dict(row.cell.shown),
            "error": row.error or None,
            "figures": {
                f"{quantity.measure}.{quantity.field}": [
                    {"size": size, "unit": quantity.unit, "values": values, "median": median(values)}
                    for size, values in row.values(quantity).items()
                ]
                for quantity in QUANTITIES
                if row.values(quantity)
            },
        }
        for row in rows
    ]


# ---- drawings


@dataclass(frozen=True)
class Point:
    """A value with its least and most, at ``x``, on the line and in the panel of these names."""

    panel: str
    line: str
    x: Any
    middle: float
    least: float
    most: float


def points_of(rows: Sequence[Row], quantity: Quantity) -> tuple[str, list[Point]]:
    """What lies along the axis, and every point: against the first setting that has several numbers, in a panel for
    each size; else against the sizes if there are several; else against the cells, which is no axis. All else that
    varies makes lines."""
    drawn = [(row, size, values) for row in rows for size, values in row.values(quantity).items()]
    cells = [row.cell.shown for row, _, _ in drawn]
    columns = {key: name for key, name in columns_of(rows).items() if any(one[key] != cells[0][key] for one in cells)}
    axis = next((key for key in columns if all(_is_number(one[key]) for one in cells)), "")
    several = len({size for _, size, _ in drawn}) > 1
    title = columns.pop(axis) if axis else quantity.sizes if several else ""
    made = []
    for row, size, values in drawn:
        words = label(row.cell, columns) if columns else ""
        panel = f"{quantity.sizes} {size}" if axis and several else ""
        x = row.cell.shown[axis] if axis else size if several else words
        made.append(Point(panel, words if title else "", x, median(values), min(values), max(values)))
    return title, made


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def draw(rows: Sequence[Row], quantity: Quantity, file: Path, name: str) -> None:
    """Draws one quantity; bars from the least to the most of several starts. Raises :class:`Unwritten`."""
    from matplotlib.figure import Figure

    title, points = points_of(rows, quantity)
    panels, lines = (sorted({getattr(point, one) for point in points}, key=_natural) for one in ("panel", "line"))
    figure = Figure(figsize=(max(7.0, 3.6 * len(panels)), 4.5 + 0.2 * len(lines)), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)
    for panel, axes in zip(panels, grid[0], strict=True):
        for number, line in enumerate(lines):
            own = [point for point in points if (point.panel, point.line) == (panel, line)]
            own.sort(key=lambda point: point.x if title else 0)
            xs, middles = [point.x for point in own], [point.middle for point in own]
            spread = [[p.middle - p.least for p in own], [p.most - p.middle for p in own]]
            bars = spread if any(map(any, spread)) else None
            if title:
                style = {"marker": "os^Dv"[number % 5], "markersize": 5, "capsize": 3, "linewidth": 1.5}
                axes.errorbar(xs, middles, bars, color=f"C{number}", label=line, **style)
            else:
                axes.barh(xs, middles, xerr=bars, capsize=3, height=0.6)
                axes.invert_yaxis()
        if title:
            ticks = sorted({point.x for point in points})
            if ticks[0] > 0 and ticks[-1] >= 4 * ticks[0]:
                axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.margins(x=0.1)
            axes.set_ylim(bottom=0)
        axes.set(
            title=panel, xlabel=title or quantity.unit, ylabel=quantity.unit if title and axes is grid[0][0] else ""
        )
        axes.grid(True, alpha=0.3, axis="both" if title else "x")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{name}: {quantity.title}")
    if lines != [""]:
        figure.legend(
            *grid[0][0].get_legend_handles_labels(), loc="outside lower left", fontsize="small", frameon=False
        )
    with written("output", file):
        figure.savefig(file, dpi=150)


def _natural(text: str) -> list[Any]:
    """As people sort: 8 before 32."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", text)]
