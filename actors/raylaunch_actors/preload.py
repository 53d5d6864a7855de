"""Imports that begin early and are short: a process that imports what a rank will, before Ray is there, and becomes a
worker of Ray's afterwards; and what makes imports shorter in every process.

Runs by its path, and imports nothing of ours:

    python preload.py import SOCKET MODULE...             imports, until somebody joins it; ends with its standard input
    python preload.py join SOCKET default_worker.py ...   what Ray is told to start in the place of ``python``

The second hands what Ray has given it to the first and stays as long as that does, as Ray has it for the worker. Where
the first is not there any more, it becomes an ordinary worker itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import select
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from typing import Any, ClassVar, NoReturn


def has_home() -> bool:
    """Whether this user has a home folder: of one without ``HOME`` and an entry in /etc/passwd nobody knows any."""
    return os.path.expanduser("~") != "~"


def own_cache() -> Path:
    """The folder of what raylaunch keeps for this user and can make again; one that cannot be made without a home."""
    return Path(os.path.expanduser("~") if has_home() else os.devnull, ".cache", "raylaunch")


BYTECODE = own_cache() / "bytecode"
NOT_USED = ("sklearn",)
"""What transformers imports for one function of its own generation, and takes seconds with all that comes along."""
MARK = "keeps_bytecode"
TAKEN = b"taken"
SIZE_BYTES = 4


def main() -> None:
    what, name, *rest = sys.argv[1:]
    if what == "join":
        join(name, rest)
    else:
        preload(name, rest)


# ---- short imports


@contextlib.contextmanager
def short_imports(*, last: bool = True) -> Iterator[None]:
    """For blocks that import much. A tenth of the time that torch and SGLang take is Python's search for garbage among
    hundreds of thousands of objects that stay; what is not used is as if it were not installed.

    Args:
        last: what there is afterwards is never searched again, and collections are on; False leaves them as they were.
    """
    keep_bytecode()
    before, hidden = gc.isenabled(), [name for name in NOT_USED if name not in sys.modules]
    gc.disable()
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            modules.pop(name, None)
        if last:
            gc.freeze()
        if last or before:
            gc.enable()


def import_all(modules: Iterable[str], wanted: Callable[[], bool] = lambda: True) -> None:
    """Imports those that can be, as long as they are ``wanted``. Of ``MODULE:FUNCTION`` the function is called, too:
    one that keeps what it returns."""
    for entry in modules:
        if not wanted():
            break
        module, _, function = entry.partition(":")
        with contextlib.suppress(ImportError):  # whoever needs it will say so
            imported = importlib.import_module(module)
            if called := getattr(imported, function, None):
                called()


class KeepsBytecode(SourceFileLoader):
    """Compiled modules that may not lie beside their sources, as in images that are read-only or were made without,
    are kept in a folder of this user's: compiling thousands of modules takes seconds."""

    kept: ClassVar[set[str]] = set()
    may_write = True  # beside the sources

    def get_data(self, path: str) -> bytes:
        return super().get_data(f"{BYTECODE}{path}" if path in self.kept else path)

    def set_data(self, path: str, data: bytes, *, _mode: int = 0o666) -> None:  # type: ignore[override]
        if self.may_write and os.access(os.path.dirname(os.path.dirname(path)), os.W_OK):
            if path in self.kept:  # of an older source
                self.kept.discard(path)
                Path(f"{BYTECODE}{path}").unlink(missing_ok=True)
            super().set_data(path, data, _mode=_mode)
        else:
            super().set_data(f"{BYTECODE}{path}", data, _mode=_mode)


def keep_bytecode() -> None:
    """Has what this process imports from now on compiled once, whatever its folders allow."""
    if any(hasattr(hook, MARK) for hook in sys.path_hooks):
        return
    for folder, _, names in os.walk(BYTECODE):
        KeepsBytecode.kept.update(os.path.join(folder, name)[len(str(BYTECODE)) :] for name in names)
    KeepsBytecode.may_write, sys.dont_write_bytecode = not sys.dont_write_bytecode, False
    loaders = (ExtensionFileLoader, EXTENSION_SUFFIXES), (KeepsBytecode, SOURCE_SUFFIXES)
    hook = FileFinder.path_hook(*loaders, (SourcelessFileLoader, BYTECODE_SUFFIXES))
    setattr(hook, MARK, True)
    place = next((number for number, one in enumerate(sys.path_hooks) if "FileFinder" in repr(one)), 0)
    sys.path_hooks.insert(place, hook)
    sys.path_importer_cache.clear()


# ---- the one that imports


def preload(name: str, modules: list[str]) -> None:
    """Imports modules until a worker is wanted, which this process then is."""
    gc.disable()  # until the rank has imported the rest
    with short_imports(last=False), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen(1)
        import_all(modules, lambda: not _ready(listener, 0.0))
        _ready(listener, None)
        joined, _ = listener.accept()
    os.unlink(name)
    if any(os.path.realpath(f"/proc/self/fd/{one}").startswith("/dev/nvidia") for one in os.listdir("/proc/self/fd")):
        sys.exit("what was imported has asked for GPUs, before it is known which are a rank's")
    become_worker(joined)


def _ready(listener: socket.socket, seconds: float | None) -> bool:
    """Waits for somebody who joins. Ends this process with the one that has started it, which may have been killed."""
    ready, _, _ = select.select([listener, sys.stdin], [], [], seconds)
    if sys.stdin in ready:
        name = listener.getsockname()
        with contextlib.suppress(OSError):
            os.unlink(name)
            os.rmdir(os.path.dirname(name))  # by the last of them
        sys.exit(0)
    return bool(ready)


def become_worker(joined: socket.socket) -> None:
    """Takes over what Ray has given to the other process: arguments, variables, files, folder, limits."""
    pid = int.from_bytes(joined.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
    told, files = _receive(joined)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    for limit in (one for one in dir(resource) if one.startswith("RLIMIT_")):
        with contextlib.suppress(OSError, ValueError):
            number = getattr(resource, limit)
            resource.setrlimit(number, resource.prlimit(pid, number))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(Path(f"/proc/{pid}/oom_score_adj").read_text())
    for descriptor, file in enumerate(files):
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv = told["arguments"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    joined.sendall(TAKEN)  # and stays open as long as this process lives
    os.set_inheritable(joined.detach(), False)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _receive(joined: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, files, _, _ = socket.recv_fds(joined, SIZE_BYTES, 3)
    size, data = int.from_bytes(head, "big"), b""
    while len(data) < size and (part := joined.recv(size - len(data))):
        data += part
    return json.loads(data), files


# ---- the one that Ray starts


def join(name: str, arguments: list[str]) -> None:
    """Has the other process be the worker, and waits for its end; else is the worker."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as other:
        other.connect(name)
        told = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        data = json.dumps(told).encode()
        socket.send_fds(other, [len(data).to_bytes(SIZE_BYTES, "big")], [0, 1, 2])
        other.sendall(data)
        if other.recv(len(TAKEN)):
            other.recv(1)
            sys.exit(0)
    be_worker(arguments)


def be_worker(arguments: list[str]) -> NoReturn:
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main()
