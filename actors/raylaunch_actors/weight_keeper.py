"""Keeps a model's weight files in a node's memory while groups of ranks come and go.

It maps the files and locks their pages: whoever reads them then reads the kernel's page cache, by whichever library.
Nothing is copied, and nothing is left once this process has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from raylaunch.errors import RankFault
from raylaunch.model.hub import cached
from raylaunch.model.load_formats import Weights, files_of
from raylaunch.protocol.rules.common import human_bytes

NICENESS = 5
AT_ONCE = 16 << 20
POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which Python has no name for
FAILED = ctypes.c_void_p(-1).value
CGROUP = Path("/sys/fs/cgroup")

_C = ctypes.CDLL(None, use_errno=True)
_C.mmap.restype = ctypes.c_void_p
_C.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
_C.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_C.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@dataclass(frozen=True)
class Kept:
    """What a keeper has in memory.

    Attributes:
        pid: its process.
        nbytes: by now.
        total: bytes that it will have.
        locked: whether the kernel may not take them away; else it does so only where memory is short.
        problem: why it keeps nothing, in a line.
    """

    pid: int
    nbytes: int = 0
    total: int = 0
    locked: bool = True
    problem: str = ""


class WeightKeeperBase:
    """A keeper as a plain class; ``raylaunch.group.remote`` makes it an actor. One thread runs ``hold`` for life."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        os.nice(NICENESS)  # ranks import meanwhile
        self._files: list[Path] = []
        self._nbytes = self._total = 0
        self._locked = True

    def prepare(self, weights: Weights) -> Kept:
        """Looks which files there are, and whether the node has the memory for them."""
        try:
            self._files = weight_files_of(weights)
            self._total = sum(file.stat().st_size for file in self._files)
        except (LookupError, RankFault, OSError, ValueError) as error:
            return Kept(os.getpid(), problem=str(error).splitlines()[0])
        if not self._files:
            return Kept(os.getpid(), problem="there are no files with weights")
        if (there := available_bytes()) < self._total:
            text = f"the weights take {human_bytes(self._total)} of memory, and {human_bytes(there)} are available"
            return Kept(os.getpid(), problem=text)
        return self.kept()

    def hold(self) -> None:
        """Reads the files and keeps them: a call that lasts as long as this process."""
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        for file in self._files:
            self._keep(file)
        threading.Event().wait()

    def kept(self) -> Kept:
        """What it has by now."""
        return Kept(os.getpid(), self._nbytes, self._total, self._locked)

    def _keep(self, file: Path) -> None:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            size, buffer = os.fstat(descriptor).st_size, bytearray(AT_ONCE)
            for at in range(0, size, AT_ONCE):  # in one go, which a disk likes better than a page fault each
                self._nbytes += os.preadv(descriptor, [buffer], at)
            if not size:
                return
            place = _C.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
            if place == FAILED:
                raise OSError(ctypes.get_errno(), f"{file} cannot be mapped")
            if _C.mlock(place, size):
                self._locked = False
                _C.madvise(place, size, POPULATE_READ)  # pages that are mapped are the last to be taken away
        finally:
            os.close(descriptor)


def weight_files_of(weights: Weights) -> list[Path]:
    """The files that ranks of this node read, by the rules of their engine. Raises LookupError or RankFault."""
    if weights.engine != "reference":
        return files_of(weights)
    from raylaunch_actors.reference.weight_files import weight_files

    folder = Path(weights.path) if Path(weights.path).is_absolute() else cached(weights.path, weights.revision)
    return [] if folder is None else weight_files(folder)


def available_bytes(cgroup: Path = CGROUP) -> int:
    """Memory that can still be taken here without anything being ended for it: of the machine, and of the container."""
    available = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError, KeyError):  # no second version of control groups, or no limit
        limit = int((cgroup / "memory.max").read_text())
        lines = (cgroup / "memory.stat").read_text().splitlines()
        stat = {name: int(value) for name, value in (line.split() for line in lines)}
        used = int((cgroup / "memory.current").read_text()) - stat["inactive_file"] - stat["active_file"]
        available = min(available, max(0, limit - used))
    return available
