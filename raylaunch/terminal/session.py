"""An engine for the length of a command: launched with a bar, reported, and shut down whatever happens."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from raylaunch.background import LOOK_S, Background, outlast
from raylaunch.logs import JsonLines, about
from raylaunch.terminal.outcome import LAUNCH_FAILED, Unwritten, interruptible, signals_held, written
from raylaunch.terminal.progress import LaunchProgress, stderr_console
from raylaunch.terminal.quiet import quiet_libraries

if TYPE_CHECKING:
    from rich.console import Console

    from raylaunch.config import LaunchConfig
    from raylaunch.engine import EngineBase
    from raylaunch.group.preloaded import Preloaded
    from raylaunch.report import LaunchReport
    from raylaunch.resolved import ResolvedLaunch

GIVE_BACK_S = 60.0

log = logging.getLogger(__name__)


@contextmanager
def launched(
    config: LaunchConfig | ResolvedLaunch,
    *,
    show_report: bool = True,
    trace: Path | None = None,
    shown_by: LaunchProgress | None = None,
    preloaded: Preloaded | None = None,
) -> Iterator[EngineBase]:
    """An engine that answers requests.

    Args:
        config: what to launch, or what is decided of it already.
        show_report: print the table of phases to standard error.
        trace: where to write the launch's Chrome trace, also if the launch fails. One that cannot be written is told at
            once, and ends neither engine nor report: the command ends with code 1 when its work is done.
        shown_by: what shows the launch while it goes on; None takes a bar.
        preloaded: what imports for its ranks already.
    Raises:
        ConfigError, LaunchError: as :meth:`raylaunch.Engine.start`.
    """
    from raylaunch.config import LaunchConfig
    from raylaunch.model_check import resolve

    # Before Ray is imported: a wrong configuration is told at once.
    resolved = resolve(config) if isinstance(config, LaunchConfig) else config
    resolved = replace(resolved, preloaded=preloaded)
    quiet_libraries()
    from raylaunch.engine import Engine
    from raylaunch.engine.replicas import Replicas, replicas_of

    with interruptible():
        console = stderr_console()
        with shown_by or LaunchProgress(console) as progress:
            engine = (Replicas if resolved.config.parallel.replicas > 1 else Engine)(resolved, listener=progress.step)
            try:
                _start(engine, progress)
            except BaseException:
                _write_trace(engine, trace, console)
                raise
        try:
            if show_report:
                for one in replicas_of(engine):
                    _show(one.report, console)
            wrote = _write_trace(engine, trace, console)
            yield engine
        finally:
            with signals_held():
                engine.shutdown()
    if not wrote:
        raise typer.Exit(LAUNCH_FAILED)


def _start(engine: EngineBase, progress: LaunchProgress) -> None:
    """Starts it on a thread of its own, where no signal interrupts it; one ends it at its next step, in order."""
    starting = Background(engine.start)
    try:
        while not starting.done(LOOK_S):
            progress.note(engine.report.fetching)
    except BaseException:
        engine.shutdown()
        if outlast(starting.done, GIVE_BACK_S):
            engine.shutdown()  # again: it may have had nothing yet to shut down
        raise
    starting.result()


def _show(report: LaunchReport, console: Console) -> None:
    if isinstance(sys.stderr, JsonLines):
        text = "ready after %.1f s"
        log.info(text, report.seconds, extra=about(launch=report.group or None, report=report.to_dict()))
    else:
        console.print(report.rich_table())


def _write_trace(engine: EngineBase, trace: Path | None, console: Console) -> bool:
    try:
        if trace is not None:
            with written("--trace", trace):
                engine.report.write_trace(trace)
    except Unwritten as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return False
    return True
