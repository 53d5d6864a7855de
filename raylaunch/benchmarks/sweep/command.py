"""``raylaunch bench sweep``: its options, and what it shows while it runs and in the end."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.benchmarks.results import JsonFile, write_results
from raylaunch.errors import ConfigError
from raylaunch.protocol.rules.common import count
from raylaunch.terminal.options import require_writable
from raylaunch.terminal.outcome import LAUNCH_FAILED, reported
from raylaunch.terminal.printed import deliver
from raylaunch.terminal.progress import stderr_console
from raylaunch.terminal.quiet import quiet_libraries

if TYPE_CHECKING:
    from raylaunch.benchmarks.sweep.plan import Cell, Sweep
    from raylaunch.benchmarks.sweep.run import RunningCell, Show

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
        from raylaunch.benchmarks.sweep.show import how_far, notes, rows_of, summary, tables
        from raylaunch.config.paths import absolute
        from raylaunch.terminal.machine import describe_machine

        sweep, path = read_sweep(file)
        base = base_of(sweep, path)
        cells = cells_of(sweep, base, path)
        folder = output or (path.parent / sweep.output if sweep.output else Path(f"{path.stem}-results"))
        try:
            folder = Path(absolute(str(folder)))
        except ValueError as error:
            raise ConfigError("--output", str(folder), str(error)) from None
        require_writable("--json", json_file)
        if report:
            lines = read_lines(folder / NAME)
            if not lines:
                raise ConfigError("--report", str(folder), f"there is no {NAME} with results in this folder")
        else:
            require_server(sweep)
            with closing(ResultsFile(folder)) as results:
                try:
                    with progress(sweep, cells, results.lines) as show:
                        run_sweep(sweep, cells, base, results, show, retry_failed=retry_failed)
                except KeyboardInterrupt:
                    done = how_far(rows_of(cells, results.lines, sweep.starts), sweep.starts)
                    typer.echo(f"{done}: the same command goes on", err=True)
                    raise
            lines = results.lines
        rows = rows_of(cells, lines, sweep.starts)
        said = [f"{title}\n{as_text(one)}" for title, one in tables(rows, sweep.starts, path.stem)]
        said += notes(rows, sweep.starts)
        if unknown := {line["cell"] for line in lines} - {cell.id for cell in cells}:
            said.append(f"left out: {count(len(unknown), 'cell')} in {NAME} that {path.name} asks for no more")
        deliver(
            "\n".join([*said, f"results: {folder}"]),
            lambda: write_results(json_file, describe_machine(), {"cells": summary(rows)}),
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
def progress(sweep: Sweep, cells: Sequence[Cell], lines: Sequence[dict[str, Any]]) -> Iterator[Show]:
    """Says of each start that has ended what came of it; on a terminal also what runs, and how many are done."""
    from rich.live import Live
    from rich.text import Text

    from raylaunch.benchmarks.sweep.show import columns_of, how_far, in_words, label, rows_of

    console = stderr_console()
    columns = columns_of(rows_of(cells, [], sweep.starts))

    def name(cell: Cell, start: int) -> str:
        return f"{label(cell, columns)}, start {start} of {sweep.starts}"

    with Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else nullcontext() as live:

        def show(running: Sequence[RunningCell], line: dict[str, Any] | None) -> None:
            if line is not None:
                row = next(row for row in rows_of(cells, [line], sweep.starts) if row.lines)
                said = f"{name(row.cell, line['start'])}: {row.error or in_words(row)}"
                console.print(said, markup=False, soft_wrap=True)
            if live is not None:
                now = [f"  {name(one.cell, one.number)}: {one.at}" for one in running]
                done = how_far(rows_of(cells, lines, sweep.starts), sweep.starts)
                live.update(Text("\n".join([done, *now])), refresh=True)

        yield show
