"""The priority of a rank's threads: Ray starts its workers at nice 15, behind everything else that a node does.

A GPU waits for the processor that gives it work. Ranks on CPUs stay behind: Ray itself needs what they compute on.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from raylaunch.protocol import NICENESS

THREADS = Path("/proc/self/task")


def restore() -> None:
    """Sets every thread of this process to nice 0, unless the cluster was told how nice its workers are to be.

    Linux keeps the niceness of each thread; threads that are started later inherit it. A process that may not (it
    needs the capability ``SYS_NICE``, which containers rarely have) stays as it is, which ``Identity.niceness`` tells.
    """
    if NICENESS in os.environ or not THREADS.is_dir():
        return
    for thread in THREADS.iterdir():
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 0)
