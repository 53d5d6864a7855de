"""One configuration launched in several ways, one after another in one run, so that their results can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from raylaunch.benchmarks.results import told_in_the_end
from raylaunch.errors import ConfigError, RequestFailed
from raylaunch.terminal.progress import stderr_console
from raylaunch.terminal.session import launched

if TYPE_CHECKING:
    from raylaunch.config import LaunchConfig
    from raylaunch.engine import EngineBase
    from raylaunch.resolved import ResolvedLaunch

Result = TypeVar("Result")
Results = dict[str, dict[int, Result]]  # by variant, then by size

VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {"capture.enabled": False},
    "library": {"capture.enabled": True, "communicator.kind": "library"},
    "custom": {"capture.enabled": True, "communicator.kind": "custom"},
    "inductor": {"capture.enabled": True, "capture.compiler": "inductor"},
}
"""Settings that make each variant. All but ``eager`` replay graphs; ``library`` reduces by NCCL or gloo."""

DEFAULT = "eager,library,custom"


class Unmeasured(RequestFailed):
    """A size of which there are no figures, though all requests were answered."""


def variants_of(text: str, config: LaunchConfig) -> dict[str, ResolvedLaunch]:
    """The launches of variants named as in ``eager,custom``, checked. Raises :class:`ConfigError`."""
    from raylaunch.model_check import resolve

    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigError("--variants", text, f"must name some of {', '.join(VARIANTS)}, each once")
    return {name: resolve(config.replace(VARIANTS[name])) for name in names}


def measure_all(
    variants: dict[str, ResolvedLaunch],
    sizes: Sequence[int],
    refusal: Callable[[EngineBase, int], str],
    measure: Callable[[EngineBase, int], Result],
    show: Callable[[Results[Result]], None],
) -> None:
    """Launches each variant, measures it at each size, and shows all results.

    Args:
        refusal: why a size cannot be measured, "" if it can; told to the user.
        measure: one result; called in the order of the sizes. Raises :class:`Unmeasured` where only then a size turns
            out to be none that can be measured.
        show: called once; if something fails, with the results that there are by then, unless there are none.
    Raises:
        LaunchError: a variant cannot be launched; nothing of it is left.
    """
    results: Results[Result] = {}
    with told_in_the_end(lambda: any(results.values()), lambda: show(results)):
        for name, resolved in variants.items():
            with _launched(name, resolved) as engine:
                results[name] = {}
                for size in sizes:
                    why = refusal(engine, size)
                    if not why:
                        try:
                            results[name][size] = measure(engine, size)
                        except Unmeasured as error:
                            why = str(error)
                    said = f"{name}: {size} is left out: {why}" if why else f"{name}, {size}: {results[name][size]}"
                    stderr_console().print(said, markup=False)


@contextmanager
def _launched(name: str, resolved: ResolvedLaunch) -> Iterator[EngineBase]:
    console = stderr_console()
    console.print(f"{name}: launching", markup=False)
    with launched(resolved, show_report=False) as engine:
        from raylaunch.protocol import Phase

        console.print(f"{name}: ready after {engine.report.seconds:.1f} s, {engine.report.describe(Phase.CONNECT)}",
                      markup=False)  # fmt: skip
        yield engine


def comparison(title: str, unit: str, results: dict[str, dict[int, float]], *, faster_is_less: bool) -> list[str]:
    """A table for people: a row for each size, a column for each variant, and how much faster than the first it is.

    Args:
        title: what was measured; ``unit``: of the sizes, such as ``tokens``.
        results: by variant, then by size.
    """
    first, *others = results
    sizes = sorted({size for column in results.values() for size in column})
    head = f"{unit:>10}" + "".join(f"{name:>11}" for name in results)
    head += "".join(f"{f'{name}/{first}':>17}" for name in others)
    lines = ["", title, head]
    for size in sizes:
        line = f"{size:>10}" + "".join(_cell(column.get(size), 11, "") for column in results.values())
        base = results[first].get(size)
        for name in others:
            own = results[name].get(size)
            speed = None if base is None or own is None else (base / own if faster_is_less else own / base)
            line += _cell(speed, 17, "x")
        lines.append(line)
    if others:
        lines.append(f"(the columns on the right: how many times as fast as {first})")
    return lines


def plain(results: Results[Any]) -> dict[str, list[dict[str, Any]]]:
    """The results, which are dataclasses, for JSON: by variant, by size ascending."""
    return {name: [asdict(one) for one in column.values()] for name, column in results.items()}


def lines_of(results: dict[str, dict[int, float]]) -> dict[str, list[tuple[float, float]]]:
    """The results as named lines of (size, result), for :func:`raylaunch.benchmarks.plot.draw`."""
    return {name: sorted(column.items()) for name, column in results.items() if column}


def _cell(value: float | None, width: int, suffix: str) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:.2f}{suffix}".rjust(width)
