"""The console script. Answers signals before anything else is loaded, which takes a while."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
from typing import NoReturn

from raylaunch.startup.signals import leave_when_told


def main() -> None:
    """Entry point of the console script and of ``python -m raylaunch``."""
    leave_when_told()
    from raylaunch.terminal.printed import open_missing_streams

    open_missing_streams()
    with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):  # no standard error
        faulthandler.register(signal.SIGUSR1, all_threads=True)  # as in the ranks
    from raylaunch.terminal.arguments import undecodable

    if problem := undecodable(sys.argv[1:]):
        print(f"ConfigError {problem}", file=sys.stderr)
        sys.exit(2)
    from raylaunch.commands.app import app
    from raylaunch.terminal.outcome import LAUNCH_FAILED, READ_NO_FURTHER

    try:
        app()
    except OSError as error:
        if not _of_printing(error):
            raise
        with contextlib.suppress(OSError):
            print(f"standard output cannot be written: {error.strerror or error}", file=sys.stderr)
        _leave(LAUNCH_FAILED)
    except SystemExit as end:
        cluster = sys.modules.get("raylaunch.cluster.session")
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.__context__, BrokenPipeError):  # typer and rich end with 1 then
            _leave(READ_NO_FURTHER)
        if code or (cluster is not None and cluster.abandoned()):
            _leave(code)
        raise


def _of_printing(error: OSError) -> bool:
    """Whether it was raised as a help or a version was printed: what a command prints is told where it is printed."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    return str(last.f_globals.get("__name__")).partition(".")[0] in ("typer", "click", "rich")


def _leave(code: int) -> NoReturn:
    """Ends now: threads that were left in the middle of an import, or in Ray, must not meet an interpreter that
    ends."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None where it was closed at the start
            stream.flush()
    os._exit(code)
