"""The console script. Answers signals before anything else is loaded, which takes a while."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys

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

    try:
        app()
    except SystemExit as end:
        cluster = sys.modules.get("raylaunch.cluster.session")
        # Threads that were left in the middle of an import, or in Ray, must not meet an interpreter that ends.
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code or (cluster is not None and cluster.abandoned()):
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(AttributeError, OSError, ValueError):  # None where it was closed at the start
                    stream.flush()
            os._exit(code)
        raise
