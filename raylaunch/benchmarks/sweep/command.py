"""``raylaunch bench sweep``: its options, and what it shows while it runs and in the end."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.benchmarks.results import JsonFile, write_results
from raylaunch.errors import ConfigError
from raylaunch.terminal.options import require_writable
from raylaunch.terminal.outcome import LAUNCH_FAILED, reported
from raylaunch.terminal.printed import deliver
from raylaunch.terminal.progress import stderr_console
from raylaunch.terminal.quiet import quiet_libraries

if TYPE_CHECKING:
    from raylaunch.benchmarks.sweep.plan import Cell, Sweep
    from raylaunch.benchmarks.sweep.run import Running, Show

WIDE = 1000


def bench_sweep(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The sweep: a YAML file, or the name of one that ships.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Its results.", show_default="the file's output, or NAME-results"),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Show the results that there are; launch nothing.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also start again what has failed.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Launch and measure every cell of a grid of settings: a table, drawings, and a line of JSON for each start.

    What has a result already is not started again: interrupted, the same command goes on. A cell that fails stops no
    other; the command ends with code 1 then.
    """
    with reported():
        quiet_libraries()
        from raylaunch.benchmarks.sweep.lines import NAME, ResultsFile, read_lines
        from raylaunch.benchmarks.sweep.plan import base_of, cells_of, read_sweep
        from raylaunch.benchmarks.sweep.run import run_sweep
        from raylaunch.benchmarks.sweep.show import notes, rows_of, summary, table
        from raylaunch.terminal.machine import describe_machine

        sweep, path = read_sweep(file)
        base = base_of(sweep, path)
        cells = cells_of(sweep, base, path)
        beside = path.parent / sweep.output if sweep.output else Path(f"{path.stem}-results")
        folder = (output or beside).expanduser().absolute()
        require_writable("--json", json_file)
        if report:
            lines = read_lines(folder / NAME)
            if not lines:
                raise ConfigError("--report", str(folder), f"there is no {NAME} with results in this folder")
        else:
            require_server(sweep)
            with closing(ResultsFile(folder)) as results, progress(sweep, path.stem, cells, results.lines) as show:
                run_sweep(sweep, cells, base, results, show, retry_failed=retry_failed)
            lines = results.lines
        rows = rows_of(cells, lines)
        text = "\n".join([as_text(table(rows, sweep.starts, path.stem)), *notes(rows, sweep.starts)])
        data: dict[str, Any] = {"cells": summary(rows)}
        if unknown := {line["cell"] for line in lines} - {cell.id for cell in cells}:
            text += f"\n{len(unknown)} cells in {folder / NAME} are none of this file's now, and not shown"
        deliver(
            f"{text}\nresults: {folder}",
            lambda: write_results(json_file, describe_machine(), data),
            *drawings(rows, folder, path.stem),
        )
        if any(row.error for row in rows):
            raise typer.Exit(LAUNCH_FAILED)


def require_server(sweep: Sweep) -> None:
    """Raises :class:`ConfigError` if ``serve`` is to be measured and there is no HTTP server."""
    if sweep.measure.serve is not None and importlib.util.find_spec("uvicorn") is None:
        raise ConfigError("measure.serve", "uvicorn", "is not installed; pip install 'raylaunch[serve]'")


def drawings(rows: Sequence[Any], folder: Path, name: str) -> list[Callable[[], None]]:
    """What draws each quantity that there are figures of, into ``folder``."""
    from raylaunch.benchmarks.sweep.show import QUANTITIES, draw

    measured = [quantity for quantity in QUANTITIES if any(row.values(quantity) for row in rows)]
    if measured and importlib.util.find_spec("matplotlib") is None:
        stderr_console().print('no drawings: matplotlib is not installed: pip install "raylaunch[bench]"', markup=False)
        return []
    return [partial(draw, rows, quantity, folder / quantity.file, name) for quantity in measured]


def as_text(made: Any) -> str:
    """A rich table as text, as wide as it needs."""
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=WIDE, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(made)
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines())


@contextmanager
def progress(sweep: Sweep, name: str, cells: Sequence[Cell], lines: Sequence[dict[str, Any]]) -> Iterator[Show]:
    """Shows a sweep while it runs: the table on a terminal, elsewhere a line for each start that has ended."""
    from raylaunch.benchmarks.sweep.show import columns_of, label, measured_sizes, rows_of, table, with_spread

    console = stderr_console()

    def line_of(line: dict[str, Any]) -> str:
        row = next(row for row in rows_of(cells, [line]) if row.lines)
        figures = [
            f"{quantity.title}{'' if size is None else f' {size}'} {with_spread(row.values(quantity)[size])} "
            f"{quantity.unit}"
            for quantity, size in measured_sizes([row])
        ]
        what = f"{label(row, columns_of([row]))}, start {line['start']} of {sweep.starts}"
        return f"{what}: {row.error or ', '.join(figures)}"

    def told(running: Sequence[Running], line: dict[str, Any] | None) -> None:
        if line is not None:
            console.print(line_of(line), markup=False, soft_wrap=True)

    if not console.is_terminal:
        yield told
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False, transient=True) as live:

        def drawn(running: Sequence[Running], line: dict[str, Any] | None) -> None:
            states = {one.cell.id: f"{one.number}/{sweep.starts} {one.at}" for one in running}
            live.update(table(rows_of(cells, lines), sweep.starts, name, states), refresh=True)

        yield drawn
