"""What a rank's thread comes before: other processes of its node, and other threads of its own.

Ray starts the workers of a cluster at nice 15, raylaunch those of its own at 0. A GPU waits for the processor that
gives it work, so its rank goes before what else its node does. A rank on a CPU stays behind: Ray itself needs what it
computes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from raylaunch.protocol import NICENESS, NICENESS_IS_OURS

THREADS = Path("/proc/self/task")
BEHIND = 15
"""How nice Ray makes workers unless it is told otherwise."""
SWITCH_S = 0.05


def set_niceness(device: str) -> None:
    """Sets nice 0 for a rank on ``cuda`` and 15 for one on ``cpu``, unless whoever started Ray has chosen for both.

    Linux keeps the niceness of each thread; threads that are started later inherit that of the calling one. On a CPU it
    alone is moved: Ray's own threads, which carry calls and answers, are at 0 in every worker. On a GPU all are. A
    process that may not (it needs the capability ``SYS_NICE``, which containers rarely have) stays as it is, which
    ``Identity.niceness`` tells.
    """
    if NICENESS in os.environ and NICENESS_IS_OURS not in os.environ:
        return
    if device == "cpu":
        os.setpriority(os.PRIO_PROCESS, 0, max(os.nice(0), BEHIND))
        return
    for thread in THREADS.iterdir() if THREADS.is_dir() else ():
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 0)


def lengthen_thread_switches() -> None:
    """Lets the thread that serves keep the interpreter for longer than 5 ms once another one waits for it.

    The main thread of a Ray worker looks for signals every 10 ms and takes the interpreter for that; to get it back is
    waiting for a processor. A call to this rank may have to wait for ``SWITCH_S`` seconds now.
    """
    sys.setswitchinterval(SWITCH_S)
