"""What ``/proc`` says of a process: whether it is there, and whether it is the one that is meant."""

from __future__ import annotations

import os
from pathlib import Path


def process_state(pid: int) -> tuple[str, str]:
    """From ``/proc``: state letter of a process, and when it was born, in the kernel's ticks; empty if there is none.

    Threads have numbers, too: on a busy host of few numbers (32,768 by default) one is another's within minutes.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def born() -> str:
    """When this process was; with its id it is told from all others of its host."""
    return process_state(os.getpid())[1]


def threads_of(pid: int) -> int:
    """Threads of a process that have not ended, its first one counted always; 0 if there is no such process."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0
