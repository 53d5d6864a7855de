"""One small actor per node: steps its ranks where there are many, reads logs, asks for native stacks and ends processes
when a rank no longer answers."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raylaunch.model.load_formats import Weights, problem_with
from raylaunch_actors import kernel_cache
from raylaunch_actors.fetch import Fetching, Wanted
from raylaunch_actors.node_gates import NodeGates
from raylaunch_actors.process_state import process_state, threads_of
from raylaunch_actors.process_watch import ProcessWatch, Sighting

COUNT_EVERY_S = 1.0
RECENT_S = 15.0  # a death is seen at once, and explained within seconds


class NodeAgentBase(NodeGates):
    """Answers for the ranks of one node, also for those that are dead or stopped."""

    def __init__(self) -> None:
        super().__init__()
        self._kills = KillCount()
        self._processes = ProcessWatch()
        self._fetching = Fetching()
        self._building: kernel_cache.Building | None = None
        threading.Thread(target=self._keep_counting, name="oom-kills", daemon=True).start()

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

    def native_stacks(self, pid: int, born: str, files: Sequence[str], wait_s: float = 0.3) -> str:
        """What faulthandler of a process writes on SIGUSR1: works while it holds the GIL, not while stopped."""
        if not self.process_states({pid: born}):
            return ""
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
        """Processes the kernel has killed for want of memory in the last seconds; 0 if it cannot be told."""
        return self._kills.recent(time.monotonic(), oom_kills())

    def fetch(self, wanted: Wanted, environment: dict[str, str]) -> str:
        """Fetches a model into this node's cache. Returns why it cannot be had; "" once it is there."""
        return self._fetching.run(wanted, environment)

    def problem_with(self, weights: Weights) -> str:
        """What this node lacks to load them, in a line; "" if it is nothing."""
        return problem_with(weights)

    def fetched(self) -> tuple[int, int]:
        """Bytes of it that are there, and that there will be; 0 where nobody knows."""
        return self._fetching.nbytes, self._fetching.total

    def cached(self, root: str | None) -> kernel_cache.Holding:
        """What this node's folder of compiled kernels has."""
        return kernel_cache.holding(root)

    def pack_cached(self, root: str | None, names: Sequence[str]) -> list[kernel_cache.Cached]:
        """Copies of these files of it."""
        return kernel_cache.pack(root, names)

    def unpack_cached(self, root: str | None, files: Sequence[kernel_cache.Cached]) -> int:
        """Adds copies to it. Returns how many were not there."""
        return kernel_cache.unpack(root, files)

    def built(self, root: str | None, launch: str) -> bool:
        """Whether all that a launch needs is there."""
        return kernel_cache.Building(root, launch).done

    def begin_building(self, root: str | None, launch: str, group: str, patience_s: float) -> float:
        """Waits for another launch that builds the same; see :class:`raylaunch_actors.kernel_cache.Building`."""
        self._building = kernel_cache.Building(root, launch)
        return self._building.begin(patience_s, group)

    def end_building(self) -> None:
        """All is built that this launch needs."""
        if self._building is not None:
            self._building.end()

    def follow(self, pids: Iterable[int]) -> None:
        """Watches these processes from now on."""
        self._processes.follow(pids)

    def seen(self) -> dict[int, Sighting]:
        """The watched processes that are dying, gone or stopped now."""
        return self._processes.seen()

    def news(self, patience_s: float) -> dict[int, Sighting]:
        """Waits until a watched process is dying or gone, or was stopped for ``patience_s``; see :meth:`seen`."""
        return self._processes.news(patience_s)

    def process_states(self, processes: Mapping[int, str]) -> dict[int, str]:
        """State letter of each process that still exists (``T`` stopped, ``D`` in the kernel); zombies are gone.

        A process whose first thread has ended while others have not is no zombie yet: it still holds its memory.

        Args:
            processes: when each was born (see :func:`raylaunch_actors.process_state.born`), by its id, which may be
                another's by now.
        """
        states = {}
        for pid, when in processes.items():
            state, since = process_state(pid)
            if state and since == when and (state != "Z" or threads_of(pid) > 1):
                states[pid] = state
        return states

    def kill(self, processes: Mapping[int, str]) -> None:
        """SIGKILL, for processes that Ray's own kill did not end."""
        for pid in self.process_states(processes):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _keep_counting(self) -> None:
        while True:
            self.out_of_memory_kills()
            time.sleep(COUNT_EVERY_S)


@dataclass
class KillCount:
    """Which of the kernel's kills are recent: it counts them since the machine started, and says of none when.

    One that is older than ``RECENT_S`` cannot explain a death that is being explained now.
    """

    _counts: deque[tuple[float, int]] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def recent(self, now: float, count: int) -> int:
        """Takes note of the kernel's count. Returns how many kills were recent; of what was before the first look,
        none."""
        with self._lock:
            self._counts.append((now, count))
            while len(self._counts) > 1 and self._counts[1][0] <= now - RECENT_S:
                self._counts.popleft()
            return count - self._counts[0][1]


def oom_kills(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """The kernel's count of out-of-memory kills: of this process's control group, which has the ranks in it; else of
    the container; else of the whole machine. 0 where it keeps none."""
    own = cgroups
    with contextlib.suppress(OSError):
        lines = (proc / "self" / "cgroup").read_text().splitlines()
        own = cgroups / next((line[4:] for line in lines if line.startswith("0::/")), "")
    for file in (own / "memory.events", cgroups / "memory.events", proc / "vmstat"):
        with contextlib.suppress(OSError, ValueError):
            for line in file.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return 0
