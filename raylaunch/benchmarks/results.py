"""What every measurement needs: its options, the machine beside the results, a file for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from raylaunch.benchmarks.plot import require_drawable
from raylaunch.errors import ConfigError
from raylaunch.terminal.options import require_writable
from raylaunch.terminal.outcome import written

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all results there.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the results there (needs matplotlib).")]

DIGITS = 9  # nothing that is measured is larger; of thousands Python makes no number


def numbers_of(option: str, text: str, example: str) -> list[int]:
    """The positive whole numbers in ``2,4,8``. Raises :class:`ConfigError` that shows ``example``."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and len(part) <= DIGITS and int(part) > 0 for part in parts):
        raise ConfigError(option, text, f"must be {example}")
    return [int(part) for part in parts]


def sizes_of(option: str, text: str, example: str) -> list[int]:
    """The sizes in ``2,4,8``, each once, ascending. Raises :class:`ConfigError`, also if there are none."""
    sizes = sorted(set(numbers_of(option, text, example)))
    if not sizes:
        raise ConfigError(option, text, f"must be {example}")
    return sizes


def percentile(values: Iterable[float], percent: int) -> float:
    """The least of the values that ``percent`` of them are not above: one of them, by its rank."""
    ranked = sorted(values)
    return ranked[-(-len(ranked) * percent // 100) - 1]


def require_outputs(json_file: Path | None, plot: Path | None) -> None:
    """Finds out before measuring that the results could not be written or drawn. Raises :class:`ConfigError`."""
    require_writable("--json", json_file)
    require_writable("--plot", plot)
    if plot is not None:
        require_drawable(plot)


def machine_line(machine: dict[str, Any]) -> str:
    """One line about the machine of :func:`raylaunch.terminal.machine.describe_machine`."""
    memory = machine["memory"]["total"] / (1 << 30)
    packages = ", ".join(f"{name} {machine['packages'][name]}" for name in ("ray", "torch"))
    return (
        f"{machine['host']}: {machine['cpus_usable']:g} CPUs, {memory:.0f} GiB, {len(machine['gpus'])} GPUs, "
        f"Python {machine['python']}, {packages}"
    )


@contextmanager
def told_in_the_end(there_are: Callable[[], object], tell: Callable[[], None]) -> Iterator[None]:
    """Tells results once when the block ends; where it fails or is interrupted those that there are by then, unless
    there are none."""
    try:
        yield
    except BaseException:
        if there_are():
            tell()
        raise
    tell()


def write_results(file: Path | None, machine: dict[str, Any], results: dict[str, Any]) -> None:
    """Writes the results, and the machine they were taken on, as JSON; nothing if no file was asked for.

    Raises :class:`Unwritten`.
    """
    if file is not None:
        with written("--json", file):
            file.write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n", encoding="utf-8")
