"""One small actor per node: reads logs, asks for native stacks and ends processes when a rank no longer answers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import ray


class NodeAgent:
    """Answers for the ranks of one node, also for those that are dead or stopped."""

    def __init__(self) -> None:
        self._oom_kills_at_start = oom_kills()

    def ready(self) -> bool:
        return True

    def log_tail(self, files: Sequence[str], lines: int = 20) -> str:
        """Last lines of the first of these files that has any."""
        for file in files:
            with contextlib.suppress(OSError):
                text = Path(file).read_text(errors="replace").strip()
                if text:
                    return "\n".join(text.splitlines()[-lines:])
        return ""

    def existing(self, file: str) -> str:
        """``file`` if there is such a file on this node, else ""."""
        return file if os.path.isfile(file) else ""

    def native_stacks(self, pid: int, files: Sequence[str], wait_s: float = 0.3) -> str:
        """What faulthandler of process ``pid`` writes on SIGUSR1: works while it holds the GIL, not while stopped."""
        sizes = {file: os.path.getsize(file) for file in files if os.path.exists(file)}
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGUSR1)
        time.sleep(wait_s)
        for file, size in sizes.items():
            with open(file, errors="replace") as log:
                log.seek(size)
                text = log.read().strip()
            if text:
                return text
        return ""

    def out_of_memory_kills(self) -> int:
        """Processes the kernel has killed for want of memory since this agent started; 0 if it cannot be told."""
        return oom_kills() - self._oom_kills_at_start

    def process_states(self, pids: Iterable[int]) -> dict[int, str]:
        """State letter of each process that still exists (``T`` stopped, ``D`` in the kernel); zombies are gone.

        A process whose first thread has ended while others have not is no zombie yet: it still holds its memory.
        """
        states = {}
        for pid in pids:
            state = process_state(pid)
            if state and (state != "Z" or threads_of(pid) > 1):
                states[pid] = state
        return states

    def kill(self, pids: Iterable[int]) -> None:
        """SIGKILL, for processes that Ray's own kill did not end."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def process_state(pid: int) -> str:
    """State letter from ``/proc``, or "" if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rsplit(")", 1)[1].split()[0]


def threads_of(pid: int) -> int:
    """Threads of a process that have not ended, its first one counted always; 0 if there is no such process."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def oom_kills() -> int:
    """The kernel's count of out-of-memory kills for this machine or container; 0 where it keeps none."""
    for file, key in (("/proc/vmstat", "oom_kill"), ("/sys/fs/cgroup/memory.events", "oom_kill")):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(file).read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == key:
                    return int(value)
    return 0


NodeAgentActor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=4)(NodeAgent)
