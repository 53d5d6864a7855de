"""Processes that import what ranks will, while Ray is started and asked for places, or while a group that is lost is
torn down; see ``raylaunch_actors.preload``.

A rank is an ordinary worker of Ray's. Where the node is the driver's own, and its workers would be started as this
process was, Ray is told to start one that hands all over to a process that has begun to import before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from raylaunch.package import ranks_side
from raylaunch.resolved import variables_of_ranks

if TYPE_CHECKING:
    from raylaunch.config import LaunchConfig

READ_BY_IMPORTS = (
    "ATEN", "CUDNN", "FLASHINFER", "GLOO", "GOMP", "HF_", "HOME", "HUGGINGFACE", "KMP", "LANG", "LC_", "LD_", "MALLOC",
    "MKL", "NCCL", "NUMBA", "NUMEXPR", "NVIDIA", "OMP", "OPENBLAS", "PATH", "PYDANTIC", "PYTHON", "PYTORCH",
    "SAFETENSORS", "SGL", "TMP", "TOKENIZERS", "TORCH", "TRANSFORMERS", "TRITON", "TVM", "USE_", "XDG_CACHE", "XLA",
)  # fmt: skip
"""How variables begin that libraries read when they are imported. All others are read later, and are the worker's."""
DEBUGGER = "PYTHONBREAKPOINT"
"""Ray sets it in every process that it is in."""
ALLOCATOR = "/ray/core/libjemalloc.so"
"""What Ray preloads into its own process alone."""
OTHER_INTERPRETERS = {"py_executable", "pip", "uv", "conda", "container", "image_uri", "nsight", "rocprof-sys"}
"""Fields of a runtime environment with which Ray starts workers by another command."""
GPU_FILES = "nvidia[0-9]*"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessEnvironment:
    """What a process is started in, as far as its child has it too.

    Attributes:
        spaces: its namespaces, control group, user and processors.
        python: what it starts Python with.
    """

    spaces: tuple[str, ...]
    python: str
    variables: Mapping[str, str] = field(repr=False)


def difference(mine: ProcessEnvironment, raylet: ProcessEnvironment, said: Mapping[str, str]) -> str:
    """Why a worker cannot be taken over by a process started here, in a few words; "" if it can.

    Args:
        said: variables that every rank is given, whatever else they were.
    """
    if mine.spaces != raylet.spaces:
        return "Ray runs in other namespaces or groups, as another user, or on other processors"
    if os.path.realpath(mine.python) != os.path.realpath(raylet.python) or mine.python != raylet.python:
        return f"Ray runs {raylet.python}"
    others = {*mine.variables, *raylet.variables} - {*said, DEBUGGER}
    names = {name for name in others if name.startswith(READ_BY_IMPORTS)}
    unlike = sorted(name for name in names if mine.variables.get(name, "") != raylet.variables.get(name, ""))
    return f"Ray has other variables: {', '.join(unlike)}" if unlike else ""


def process_environment(pid: int, python: str) -> ProcessEnvironment:
    """Those of a process of this user's. Raises ``OSError``."""
    process = Path(f"/proc/{pid}")
    status = process.joinpath("status").read_text().splitlines()
    owners = [line for line in status if line.startswith(("Uid", "Gid", "Cpus_allowed:"))]
    spaces = [os.readlink(one) for one in sorted(process.joinpath("ns").iterdir())]
    with contextlib.suppress(FileNotFoundError):  # of a kernel without control groups
        spaces.append(process.joinpath("cgroup").read_text())
    pairs = [one.partition(b"=") for one in process.joinpath("environ").read_bytes().split(b"\0")]
    variables = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if name}
    return ProcessEnvironment((*spaces, *owners), python, variables)


class Preloaded:
    """As many processes as this node may have ranks.

    Args:
        modules: that they import, in this order.
        variables: that every rank is given.
        defaults: that it has if nobody has set them.
        environment: of this process, before Ray and SGLang have changed it; that it has now if None.
    """

    def __init__(
        self,
        count: int,
        modules: Sequence[str],
        variables: Mapping[str, str],
        defaults: Mapping[str, str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._variables, self._defaults = variables, defaults
        self._environment = {**(os.environ if environment is None else environment), **variables}
        # Unix sockets have short names only: not below a long TMPDIR.
        self._folder = Path(tempfile.mkdtemp(prefix="raylaunch-", dir="/tmp"))
        self._program = str(Path(ranks_side(str(Path(__file__).parents[1]))) / "preload.py")
        self._left = [self._folder / str(rank) for rank in range(count)]
        self._started: dict[Path, subprocess.Popen[bytes]] = {}
        self._why: str | None = None
        try:
            for name in self._left:
                self._started[name] = self._start(name, modules)
        except BaseException:
            self.close()
            raise

    def _start(self, name: Path, modules: Sequence[str]) -> subprocess.Popen[bytes]:
        """Starts one in a thread that lives as long as it does, and waits for it: SGLang has the kernel kill a
        scheduler whose parent ends, and to the kernel the parent is the thread (prctl(2), PR_SET_PDEATHSIG)."""
        started: Future[subprocess.Popen[bytes]] = Future()

        def own() -> None:
            try:
                process = subprocess.Popen(
                    [sys.executable, self._program, "import", str(name), *modules],
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    env={**self._defaults, **self._environment}, process_group=0,
                )  # fmt: skip
            except BaseException as error:
                started.set_exception(error)
                return
            started.set_result(process)
            process.wait()

        threading.Thread(target=own, name="raylaunch-preloaded", daemon=True).start()
        return started.result()

    def executable(self) -> str | None:
        """What Ray is to start in the place of Python for one rank on this node, another one each time; None for
        Python. Needs Ray."""
        if self._why is None:
            self._why = self._why_not()
            log.info("ranks are processes that have begun to import%s", f": not, {self._why}" if self._why else "")
        if self._why or not self._left:
            return None
        return shlex.join([sys.executable, "-S", "-E", self._program, "join", str(self._left.pop(0))])

    def _why_not(self) -> str:
        import ray

        from raylaunch.ray_private import raylet_here

        given = ray.get_runtime_context().runtime_env
        if others := OTHER_INTERPRETERS & given.keys():
            return f"the job's runtime environment has {', '.join(sorted(others))}"
        try:
            pid, python = raylet_here()
            theirs, mine = process_environment(pid, python), process_environment(os.getpid(), sys.executable)
        except (OSError, LookupError) as error:
            return f"Ray's own process cannot be seen: {error}"
        variables = {**theirs.variables, **given.get("env_vars", {})}
        if variables.get("LD_PRELOAD", "").endswith(ALLOCATOR):
            del variables["LD_PRELOAD"]
        theirs = ProcessEnvironment(theirs.spaces, python, variables)
        return difference(ProcessEnvironment(mine.spaces, mine.python, self._environment), theirs, self._variables)

    def close(self) -> None:
        """Ends those that have become no worker. May be called more than once."""
        started, self._started = self._started, {}
        if gone := [code for one in started.values() if (code := one.poll())]:
            log.info("%d of the processes that imported for ranks have ended: code %d", len(gone), gone[0])
        for name, process in started.items():
            with contextlib.suppress(OSError):
                if name.exists():
                    process.kill()
                    process.wait()
                assert process.stdin is not None
                process.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def preload(config: LaunchConfig, environment: Mapping[str, str] | None = None) -> Preloaded | None:
    """Begins to import what the ranks will that this node may have; None if there are none, nothing is known of what
    they import, or they are of several replicas, of which each begins for itself."""
    count = ranks_here(config, len(list(Path("/dev").glob(GPU_FILES))))
    if config.engine.kind != "sglang" or not config.engine.preload or config.parallel.replicas > 1 or not count:
        return None
    from raylaunch_actors.sglang_engine.environment import OF_OTHERS, shared

    try:
        return Preloaded(count, OF_OTHERS, variables_of_ranks(config), shared(config), environment)
    except OSError as error:  # ranks import later then
        log.warning("no process can import for the ranks: %s", error)
        return None


@contextlib.contextmanager
def preloading(config: LaunchConfig, environment: Mapping[str, str] | None = None) -> Iterator[Preloaded | None]:
    """The same for a block in which it is launched, or found to be wrong."""
    preloaded = preload(config, environment)
    try:
        yield preloaded
    finally:
        if preloaded is not None:
            preloaded.close()


def ranks_here(config: LaunchConfig, gpus: int) -> int:
    """How many ranks a node with so many GPUs may have, at most."""
    most = config.parallel.tensor_parallel_size // config.parallel.nodes
    return most if config.engine.device == "cpu" else min(most, gpus)
