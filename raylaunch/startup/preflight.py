"""What a launch needs of the process and the machine that it starts from, asked before Ray is: much of it Ray tells in
the middle of its own start, some of it by aborting."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import sys
from pathlib import Path

from raylaunch.config import LaunchConfig
from raylaunch.config.address import cluster_to_join
from raylaunch.errors import ConfigError
from raylaunch.startup.shadows import require_unshadowed
from raylaunch.tracing.export import problem

SOCKET_BYTES = 107  # the longest name of a Unix socket
OBJECT_STORE_BYTES = 100 << 20  # of a private cluster
RAY_BYTES, RAY_FILES = 64 << 20, 200  # its logs and sockets
# Counted on CPUs, rounded down. No process of a launch had more files open than 69 with two ranks, 75 with four and 131
# with two of SGLang's; all processes together had 272, 336 and 385 threads.
FILES, FILES_OF_SGLANG, FILES_OF_A_RANK = 60, 120, 4
THREADS, THREADS_OF_SGLANG, THREADS_OF_A_RANK = 200, 320, 32
MIB = 1 << 20
SHARED_MEMORY = Path("/dev/shm")

log = logging.getLogger(__name__)


def preflight(config: LaunchConfig) -> None:
    """Raises :class:`ConfigError` where a launch from here could not work, with what to do about it."""
    require_working_directory()
    _require_replicable(config)
    if trouble := problem(os.environ):
        log.warning("%s", trouble)
    require_unshadowed(sglang=config.engine.kind == "sglang")
    ray = sys.modules.get("ray")
    if cluster_to_join(config.placement.address) or (ray is not None and ray.is_initialized()):
        return  # what follows is of a private cluster
    _require_room()
    ranks = config.parallel.tensor_parallel_size * config.parallel.replicas
    _require_limits(ranks, sglang=config.engine.kind == "sglang")


def _require_replicable(config: LaunchConfig) -> None:
    """Raises :class:`ConfigError` for several replicas of what a process can have one of."""
    count = config.parallel.replicas
    if count == 1:
        return
    if config.engine.kind == "sglang" and config.engine.sglang.args.get("enable_metrics"):
        expected = "SGLang's metrics are of one engine in a process: leave it out; /raylaunch/metrics has each's"
        raise ConfigError("engine.sglang.args.enable_metrics", True, expected)
    if config.placement.placement_group is not None:
        expected = "each replica has a placement group of its own: leave placement.placement_group out"
        raise ConfigError("parallel.replicas", count, expected)
    if config.parallel.rendezvous_port:
        expected = "each replica binds a port of its own: leave it at 0"
        raise ConfigError("parallel.rendezvous_port", config.parallel.rendezvous_port, expected)


def _require_room() -> None:
    key, folder = ray_folder()
    if problem := folder_problem(folder) or space_problem(folder, needed_bytes()):
        raise ConfigError(key, folder, problem)
    if uses_shared_memory() and (problem := unwritable(SHARED_MEMORY)):
        raise ConfigError("shared memory", str(SHARED_MEMORY), f"{problem}: Ray keeps its objects there")


def _require_limits(ranks: int, *, sglang: bool) -> None:
    files, threads = open_files(), processes_left()
    needed = (FILES_OF_SGLANG if sglang else FILES) + FILES_OF_A_RANK * ranks
    if problem := too_few("open files", files, needed):
        raise ConfigError("ulimit -n", files, f"{problem}: raise it, such as with ulimit -n 8192")
    needed = (THREADS_OF_SGLANG if sglang else THREADS) + THREADS_OF_A_RANK * ranks
    if problem := too_few("more processes and threads", threads, needed):
        raise ConfigError("ulimit -u", threads, f"{problem}: raise it, or the container's limit of pids")


def require_working_directory() -> None:
    """Raises :class:`ConfigError` if it was deleted: Ray's processes and the ranks start there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        gone = os.environ.get("PWD", "")
        raise ConfigError("working directory", gone, "no longer exists: cd to one that does") from None


def ray_folder() -> tuple[str, str]:
    """The variable that says where a private cluster keeps its files, and where; as Ray has it."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if name in os.environ:
            return name, os.path.join(os.environ[name], "ray")
    return "RAY_TMPDIR", "/tmp/ray"


def folder_problem(folder: str) -> str:
    """Why Ray cannot keep its files in ``folder``, which need not exist yet; "" if it can."""
    if not os.path.isabs(folder):
        return "must be an absolute path: Ray's processes start in other folders"
    # Sockets are called like this; the longest is .../session_2026-01-31_23-59-59_123456_PID/sockets/plasma_store
    longest = len(os.fsencode(folder)) + len("/session__/sockets/plasma_store") + 26 + len(str(os.getpid()))
    if longest > SOCKET_BYTES:
        return (
            f"is too long by {longest - SOCKET_BYTES} bytes for the names of Ray's sockets: set RAY_TMPDIR to a short "
            "folder, such as /tmp"
        )
    problem = unwritable(Path(folder))
    return f"{problem}: set RAY_TMPDIR to a folder where it may" if problem else ""


def unwritable(folder: Path) -> str:
    """Why nothing can be made in ``folder``, or it itself in the first of its parents that exists; "" if it can."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there} is no folder, so this user may write nothing in it"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"this user may not write in {there}"
    return ""


def needed_bytes() -> int:
    """Bytes that a private cluster takes where it keeps its files."""
    return RAY_BYTES if uses_shared_memory() else RAY_BYTES + OBJECT_STORE_BYTES


def uses_shared_memory() -> bool:
    """Whether Ray will keep its objects in shared memory: only where there is enough of it."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free >= OBJECT_STORE_BYTES
    except OSError:
        return False


def space_problem(folder: str, needed: int) -> str:
    """Why there is too little room where ``folder`` is or will be; "" if there is enough, or nobody can tell."""
    there = Path(folder)
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        found = os.statvfs(there)
    except OSError:
        return ""
    remedy = "make room, or set RAY_TMPDIR to a folder elsewhere"
    free = found.f_bavail * found.f_frsize
    if free < needed:
        return f"{free / MIB:.0f} MiB are free there, and Ray needs {needed / MIB:.0f}: {remedy}"
    if found.f_files and found.f_favail < RAY_FILES:
        return f"no more than {found.f_favail} files can be made there: {remedy}"
    return ""


def open_files() -> int | None:
    """How many files a process may have open, once Ray has raised the limit as far as it may; None if any number."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def processes_left() -> int | None:
    """How many processes and threads more this user or container may have; None if nobody can tell, or any number."""
    left = []
    for own in (*_cgroup_folders(), Path("/sys/fs/cgroup")):
        try:
            limit, used = (own / "pids.max").read_text().strip(), int((own / "pids.current").read_text())
        except (OSError, ValueError):
            continue
        if limit.isdecimal():
            left.append(int(limit) - used)
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:  # root has no such limit
        left.append(soft - _threads_of_user())
    return max(0, min(left)) if left else None


def too_few(what: str, allowed: int | None, needed: int) -> str:
    """Why ``allowed`` of these are not enough; "" if they are, or nobody can tell."""
    if allowed is None or allowed >= needed:
        return ""
    return f"allows {allowed} {what}, and this launch needs {needed} at least"


def _cgroup_folders() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    return [Path("/sys/fs/cgroup") / line[4:] for line in lines if line.startswith("0::/")]


def _threads_of_user() -> int:
    count, user = 0, os.getuid()
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdecimal() and entry.stat().st_uid == user:
                count += len(os.listdir(f"/proc/{entry.name}/task"))
        except OSError:
            continue
    return count
