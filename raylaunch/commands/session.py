"""An engine for the length of a command: launched with a bar, reported, and shut down whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raylaunch.commands.outcome import signals_held
from raylaunch.commands.progress import LaunchProgress, stderr_console
from raylaunch.commands.quiet import quiet_libraries

if TYPE_CHECKING:
    from raylaunch.config import LaunchConfig
    from raylaunch.engine import Engine


@contextmanager
def launched(config: LaunchConfig, *, show_report: bool = True, trace: Path | None = None) -> Iterator[Engine]:
    """An engine that answers requests.

    Args:
        show_report: print the table of phases to standard error.
        trace: where to write the launch's Chrome trace, also if the launch fails.
    Raises:
        ConfigError, LaunchError: as :meth:`raylaunch.Engine.start`.
    """
    from raylaunch.model_check import check_model

    check_model(config)  # before Ray is imported: a wrong configuration is told at once
    quiet_libraries()
    console = stderr_console()
    with LaunchProgress(console) as progress:
        from raylaunch.engine import Engine

        engine = Engine(config, listener=progress.step)
        try:
            engine.start()
        except BaseException:
            _write_trace(engine, trace)
            raise
    try:
        if show_report:
            console.print(engine.report.rich_table())
        _write_trace(engine, trace)
        yield engine
    finally:
        with signals_held():
            engine.shutdown()


def _write_trace(engine: Engine, trace: Path | None) -> None:
    if trace is not None:
        engine.report.write_trace(trace)
