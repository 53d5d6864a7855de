"""All that is used of Ray's private interfaces, as read in Ray 2.60; ruff lets nothing else use them.

Each entry says what it is for, and those of which upstream speaks say where, so that one knows when they can go.
"""

from __future__ import annotations

import contextlib
import ctypes
import shlex
import sys
import time
from collections.abc import Iterator, Mapping

import psutil
import ray
import ray._private.ray_constants
import ray._private.worker
import ray._raylet

SHUTDOWN_S = 10.0
WORKERS = "--python_worker_command="
UV = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
HANDLERS_INSTALLED = "_ZN3ray6RayLog36is_failure_signal_handler_installed_E"
"""``ray::RayLog::is_failure_signal_handler_installed_``"""
_OUTLASTED: dict[int, float] = {}  # until when the end of which core is waited for

HEAD_PROBE = """
import socket
import sys
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import GcsClient

address = canonicalize_bootstrap_address_or_die(sys.argv[1])
print(address, flush=True)
host, _, port = address.rpartition(":")
socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
GcsClient(address=address).internal_kv_get(b"raylaunch", namespace=b"raylaunch", timeout=10)
print("answers")
"""
"""A program that asks the head of a cluster something: ``ray.init`` has no deadline, and ends its process where it
finds no GCS. Prints the head's address, then whether it has answered."""


def free_resources() -> Mapping[str, Mapping[str, float]]:
    """What is free of each node's resources, by node id. Public are the whole cluster's alone
    (https://github.com/ray-project/ray/issues/60134)."""
    free: Mapping[str, Mapping[str, float]] = ray._private.state.available_resources_per_node()
    return free


def raylet_here() -> tuple[int, str]:
    """Process id of the raylet of this driver's node, and what it starts Python with. Raises ``LookupError`` where none
    is seen, ``OSError``."""
    node = ray._private.worker._global_node
    socket = f"--raylet_socket_name={node.raylet_socket_name}" if node is not None else ""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet" and socket in process.info["cmdline"]:
            (command,) = (one for one in process.info["cmdline"] if one.startswith(WORKERS))
            return process.pid, shlex.split(command.removeprefix(WORKERS))[0]
    raise LookupError("no raylet among the processes")


def worker_id() -> bytes:
    """Ray's id of this process, another one after every ``ray.init``; the context's own would start Ray to tell it
    (https://github.com/ray-project/ray/issues/64206)."""
    return bytes(getattr(ray._private.worker.global_worker, "worker_id", b""))


def workers_folders() -> tuple[str, ...] | None:
    """Folders that the driver has had its workers put before all others on their path, last one first; None without a
    session. No public interface tells them."""
    worker = ray._private.worker.global_worker
    return tuple(getattr(worker.core_worker.get_job_config(), "py_driver_sys_path", ())) if worker.connected else None


def outlast_shutdown() -> None:
    """Waits while another thread is within ``ray.shutdown``. A reference to an object that is dropped after Ray's core
    has ended, and before Ray has forgotten it, ends the process with code 1.

    One that a signal has ended in its midst comes to no end: all who ask wait :data:`SHUTDOWN_S` for it together."""
    worker = ray._private.worker.global_worker
    core = id(getattr(worker, "core_worker", None))  # which may not be asked anything any more, not even its own id
    while not worker.connected and hasattr(worker, "core_worker"):
        if time.monotonic() > _OUTLASTED.setdefault(core, time.monotonic() + SHUTDOWN_S):
            return
        time.sleep(0.01)
    _OUTLASTED.pop(core, None)


def start_no_other_session() -> None:
    """Has calls of Ray that come too late fail, of threads that were busy when the session ended: they would start
    another one (https://github.com/ray-project/ray/issues/64206)."""
    with contextlib.suppress(ImportError):
        from ray._private import auto_init_hook

        auto_init_hook.enable_auto_connect = False


def print_no_worker_lines() -> None:
    """Keeps Ray from printing workers' and raylets' lines among ours, which ``log_to_driver=False`` does not do for all
    of them: the report and the errors say what happened."""
    if hasattr(ray._private.worker, "_worker_logs_enabled"):
        ray._private.worker._worker_logs_enabled = False


def name_in_logs(name: str) -> None:
    """What Ray puts before this process's lines from here on; else it stays what the actor was called when it was
    made."""
    for stream in (sys.stdout, sys.stderr):
        print(f"{ray._private.ray_constants.LOG_PREFIX_ACTOR_NAME}{name}", file=stream, flush=True)


def forget_token() -> None:
    """Makes Ray read its token anew: since local clusters have one by default
    (https://github.com/ray-project/ray/pull/64755) it keeps the first one for the life of the process."""
    with contextlib.suppress(ImportError, AttributeError):  # older versions have no tokens
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

        AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def workers_without_uv() -> Iterator[None]:
    """Under ``uv run`` Ray would start workers with it anew, in a copy of the working directory, and refuse one below
    the project's folder (https://github.com/ray-project/ray/pull/53060). On this machine they can run in the
    environment that this process is in."""
    constants = ray._private.ray_constants
    before = getattr(constants, UV, None)
    if before is not None:
        setattr(constants, UV, False)
    try:
        yield
    finally:
        if before is not None:
            setattr(constants, UV, before)


@contextlib.contextmanager
def signals_left_alone() -> Iterator[None]:
    """Keeps the C++ side of Ray from taking signals while it starts in this process, and from what it does at its end.

    It would put a handler under Python's for which SIGTERM is a crash: a dump, and SIGABRT
    (https://github.com/ray-project/ray/pull/64830). At its end it would leave the system's own answer, so that a
    SIGTERM kills a process that still has something to give back. Ray has no setting for it, but asks itself whether
    the handlers are there already. Python's ``faulthandler``, which Ray turns on, still tells of real crashes.
    """
    installed = handlers_installed()
    if installed is None or installed.value:  # another version of Ray, or a session of the user's that was there before
        yield
        return
    installed.value = True
    try:
        yield
    finally:
        installed.value = False


def handlers_installed() -> ctypes.c_bool | None:
    """What Ray's C++ side believes of its handlers of signals; None where this version has no such variable."""
    try:
        return ctypes.c_bool.in_dll(ctypes.CDLL(ray._raylet.__file__), HANDLERS_INSTALLED)
    except (OSError, ValueError):
        return None
