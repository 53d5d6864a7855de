"""The actor of one rank: a thread that launches and serves, and control threads that answer meanwhile."""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import platform
import signal
import sys
import threading
import traceback
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import ray

from raylaunch import logs
from raylaunch.errors import RankFault
from raylaunch.package import package_files
from raylaunch.protocol import Arrival, Failure, Release
from raylaunch_actors import node_gates, priority, shortage
from raylaunch_actors.contexts import open_contexts
from raylaunch_actors.gate import RankGate, RankState
from raylaunch_actors.interfaces import choose_interface
from raylaunch_actors.preload import import_all, short_imports
from raylaunch_actors.process_state import born
from raylaunch_actors.progress import importing
from raylaunch_actors.spec import RankSpec

log = logging.getLogger(__name__)

PROGRAMS = {
    "reference": "raylaunch_actors.reference.launch",
    "sglang": "raylaunch_actors.sglang_engine.launch",
    "noop": "raylaunch_actors.programs.noop",
    "bench_all_reduce": "raylaunch_actors.programs.bench_all_reduce",
}
"""Modules whose ``run(spec, gate)`` takes a rank through its phases and serves until it is stopped. Where there is an
``imports(spec)`` it gives the names of what that will import, none of which may touch a GPU; ``metrics()`` gives the
Prometheus metrics that are kept in this process."""


@dataclass(frozen=True)
class RankProcess:
    """Where a rank runs, for those who must watch, read or end its process.

    Attributes:
        gpus: Ray's ids of its GPUs.
        born: see :func:`raylaunch_actors.process_state.born`.
        since: the same, in seconds since the epoch.
    """

    rank: int
    pid: int
    node_id: str
    address: str
    log_files: tuple[str, ...]
    gpus: tuple[str, ...] = ()
    born: str = ""
    since: float = 0.0

    @property
    def device(self) -> str:
        """In words: ``cpu``, ``gpu 1`` or ``gpu 0, 1``."""
        return f"gpu {', '.join(self.gpus)}" if self.gpus else "cpu"


class RankBase:
    """A rank as a plain class; ``raylaunch.group.remote`` makes it an actor. One thread runs ``boot`` for life.

    A spare one, which ``stands_by`` until a group adopts it, is told by ``spec`` what its rank will have in common with
    those of the group that serves; on its thread it runs ``prepare`` and ``stand_by`` before.
    """

    def __init__(self, spec: RankSpec, stands_by: bool = False) -> None:
        priority.set_niceness(spec.device)  # before there are threads of libraries
        self._adopted = threading.Event()
        if not stands_by:
            self._adopted.set()
        self._boot_thread: int | None = None
        os.environ.update(spec.environment)
        self._set_spec(replace(spec, initial_environment=dict(os.environ)))
        faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True, chain=False)

    def _set_spec(self, spec: RankSpec) -> None:
        if spec.core_file:  # CUDA makes no folders
            Path(spec.core_file).parent.mkdir(parents=True, exist_ok=True)
        logs.set_up(spec.config.log, launch=spec.group, rank=spec.rank)
        self.spec = spec
        self.gate = RankGate(spec.rank, spec.plan)
        self.gate.out_of_memory = partial(shortage.recognised, spec)

    def __repr__(self) -> str:
        if not hasattr(self, "spec"):
            return "rank"
        return f"{self.spec.group}/{f'rank{self.spec.rank}' if self._adopted.is_set() else 'standby'}"

    def prepare(self, gpus: str) -> int:
        """Imports what a rank imports, as long as nobody adopts this one. Returns the bytes that the process then has
        in memory.

        Args:
            gpus: value of ``CUDA_VISIBLE_DEVICES``, which is fixed once something has asked CUDA; "" on a CPU.
        Raises:
            RankFault: that has taken memory of a GPU, where a group serves.
        """
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
        with short_imports():
            program = importlib.import_module(PROGRAMS[self.spec.program])
            import_all(getattr(program, "imports", lambda _: ())(self.spec), lambda: not self._adopted.is_set())
        if opened := open_contexts():
            raise RankFault(None, f"its imports have opened a CUDA context on GPU {', '.join(map(str, opened))}")
        return int(psutil.Process().memory_info().rss)

    def stand_by(self) -> None:
        """Waits until this rank is adopted: a call that lasts as long as it may be."""
        self._adopted.wait()

    def boot(self, gpus: tuple[str, int] | None = None) -> Failure | None:
        """Launches and serves. Returns the failure that ended it, or None after a stop.

        Args:
            gpus: value of ``CUDA_VISIBLE_DEVICES``, to be set before anything asks CUDA, and this rank's index there.
        """
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"], index = gpus
            self.spec = replace(self.spec, device_index=index)
        self._boot_thread = threading.get_ident()
        try:
            require_same_files(self.spec.driver_files, package_files())
            choose_interface(self.spec)
            if self.spec.config.faults:
                from raylaunch_actors.faults import at_gates

                self.gate = at_gates.provoke(self.spec, self.gate)
            name = PROGRAMS[self.spec.program]
            with importing(self.gate, name):
                program = importlib.import_module(name)
            program.run(self.spec, self.gate)
        except BaseException as error:
            # SystemExit and KeyboardInterrupt too: a rank must not leave without saying why.
            failure = self.gate.fail(error)
            log.exception("this rank ends", extra=logs.about(fault=failure.code))
            return failure
        return None

    # ---- control threads

    def adopt(self, spec: RankSpec) -> None:
        """Makes a spare rank the one of ``spec``, whose environment must be that of the spare's own."""
        self._set_spec(replace(spec, initial_environment=self.spec.initial_environment))
        self._adopted.set()

    def whoami(self) -> RankProcess:
        """Where this rank runs. Needs Ray."""
        context = ray.get_runtime_context()
        return RankProcess(
            rank=self.spec.rank,
            pid=os.getpid(),
            node_id=context.get_node_id(),
            address=ray.util.get_node_ip_address(),
            log_files=log_files(context.get_worker_id()),
            gpus=tuple(context.get_accelerator_ids().get("GPU", ())),
            born=born(),
            since=psutil.Process().create_time(),
        )

    def attach(self, agent: tuple[str, bytes]) -> None:
        """Lets the agent of this node step this rank; see :mod:`raylaunch_actors.node_gates`."""
        node_gates.attach(self.gate, *agent)

    def advance(self, release: Release | None) -> Arrival | Failure:
        """Releases the rank from its gate and returns its next arrival, or the failure that ended it."""
        return self.gate.advance(release)

    def finish(self, release: Release) -> None:
        """Releases the rank into SERVE."""
        priority.lengthen_thread_switches()
        self.gate.finish(release)

    def health(self) -> RankState:
        """What the rank is doing, whatever its own thread is busy with."""
        return self.gate.state()

    def metrics(self) -> list[object]:
        """Metrics of the engine's own that nobody else shows."""
        program = sys.modules.get(PROGRAMS[self.spec.program])
        return list(getattr(program, "metrics", list)())

    def stop(self) -> None:
        """Asks the rank to leave its serve loop."""
        self.gate.stop_requested.set()

    def stacks(self) -> str:
        """Python stack of the rank's own thread."""
        frame = sys._current_frames().get(self._boot_thread or 0)
        if frame is None:
            raise RankFault(None, f"rank {self.spec.rank} has no running thread")
        return "".join(traceback.format_stack(frame))


def require_same_files(driver: tuple[str, str], mine: tuple[str, str]) -> None:
    """Raises RankFault F19 if driver and rank have imported different files of raylaunch, each as digest and folder."""
    if driver[0] and driver[0] != mine[0]:
        text = (
            f"this rank has imported raylaunch from {mine[1]} on {platform.node()}, the driver from {driver[1]}, and "
        )
        text += "their files differ: install the same version on every node, or bring it along in a job's working_dir"
        raise RankFault("F19", text)


def log_files(worker_id: str) -> tuple[str, ...]:
    """Paths of this process's standard error and output as Ray redirects them."""
    found: list[str] = []
    for descriptor in (2, 1):
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}")) if sys.platform == "linux" else Path()
        if worker_id in target.name and target.is_file():
            found.append(str(target))
    return tuple(found)
