"""What ranks compile at run time, in a folder of this node: what is there, copies for other nodes, who builds in it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylaunch_actors.fingerprint import package_version
from raylaunch_actors.preload import own_cache

CACHED_BY = ("sglang", "sglang-kernel", "torch", "triton", "flashinfer-python")
BUILT = "built"  # in the folder: a file for each kind of launch that has built all it needs, and its lock
UNFINISHED = (".lock", ".tmp", ".part", ".pid")
LOOK_S = 0.2


@dataclass(frozen=True)
class Cached:
    """A file of the cache; ninja takes one for stale that is newer than it remembers."""

    name: str
    mode: int
    mtime_ns: int
    data: bytes


@dataclass(frozen=True)
class Holding:
    """What a node has.

    Attributes:
        key: what its files are built by and for; those of another one are of no use.
        files: bytes by name, in the folder.
    """

    key: str
    files: Mapping[str, int]


def folder_of(root: str | None) -> Path:
    """The folder of this set of versions, none of which may read another's.

    Args:
        root: what ``engine.sglang.cache_dir`` says.
    """
    base = Path(root).expanduser() if root else own_cache()
    return base / "_".join(f"{name}-{package_version(name)}" for name in CACHED_BY)


def holding(root: str | None) -> Holding:
    """What is in this node's folder. Raises ``OSError``."""
    folder = folder_of(root)
    files = {str(file.relative_to(folder)): file.stat().st_size for file in _files(folder)}
    return Holding(f"{folder.name} {_machine()}", files)


def _files(folder: Path) -> Iterator[Path]:
    for place, below, names in os.walk(folder):
        if Path(place) == folder and BUILT in below:
            below.remove(BUILT)
        for name in names:
            file = Path(place, name)
            if not name.endswith(UNFINISHED) and ".tmp" not in name and file.is_file() and not file.is_symlink():
                yield file


def _machine() -> str:
    """What compiled code is for: interpreter, C library, processor and GPUs."""
    gpus = set[str]()
    with contextlib.suppress(Exception):  # there are none
        import pynvml

        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(index))
            gpus.add(f"sm{major}{minor}")
        gpus.add(f"driver {pynvml.nvmlSystemGetCudaDriverVersion()}")
        pynvml.nvmlShutdown()
    return " ".join((sys.implementation.cache_tag, *platform.libc_ver(), platform.machine(), *sorted(gpus)))


def pack(root: str | None, names: Sequence[str]) -> list[Cached]:
    """Copies of these files; those that are gone are left out."""
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            file = folder_of(root) / name
            data, stat = file.read_bytes(), file.stat()
            found.append(Cached(name, stat.st_mode & 0o777, stat.st_mtime_ns, data))
    return found


def unpack(root: str | None, files: Sequence[Cached]) -> int:
    """Puts copies where they belong, each whole or not at all; what is there already stays. Returns how many are new.
    Raises ``OSError``."""
    folder, new = folder_of(root), 0
    for one in files:
        target = folder / one.name
        if target.exists() or ".." in target.parts or not target.is_relative_to(folder):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        try:
            part.write_bytes(one.data)
            part.chmod(one.mode)
            os.utime(part, ns=(one.mtime_ns, one.mtime_ns))
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)  # of a disk that is full
        new += 1
    return new


class Building:
    """Lets one launch after the other build on this node what has not been built before. Libraries have locks of their
    own for some of it, Triton has none.

    Args:
        root: what ``engine.sglang.cache_dir`` says.
        launch: name of all launches that need the same kernels.
    """

    def __init__(self, root: str | None, launch: str) -> None:
        machine = hashlib.sha256(_machine().encode()).hexdigest()[:8]  # several may share the folder
        self._mark = folder_of(root) / BUILT / f"{launch}-{machine}"
        self._lock: int | None = None

    @property
    def done(self) -> bool:
        """Whether a launch has been through that needed the same."""
        return self._mark.exists()

    def begin(self, patience_s: float, group: str = "") -> float:
        """Waits while another group builds, at most that long. Returns the seconds that it has waited. Raises
        ``OSError``.

        Args:
            group: unique name of this one, whose other nodes may share the folder; "" for none.
        """
        began = time.monotonic()
        if self.done:
            return 0.0
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._mark.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        while not (held := self._locked()) and time.monotonic() - began < patience_s:
            if group and os.pread(self._lock, 256, 0).decode() == group:
                break
            time.sleep(LOOK_S)
        if held:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, group.encode(), 0)
        if self.done:
            self._unlock()
        return time.monotonic() - began

    def end(self) -> None:
        """All is built: others need not wait. A process that ends before lets them build. Raises ``OSError``."""
        self._mark.touch()
        self._unlock()

    def _locked(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
