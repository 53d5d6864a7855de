"""Runs what is due of a sweep: a process for each start, all in one Ray session, several at a time if asked to."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from raylaunch.background import Background
from raylaunch.benchmarks.programs import ray_session
from raylaunch.benchmarks.sweep.cell import ENDING, Job, in_a_line
from raylaunch.benchmarks.sweep.lines import ResultsFile
from raylaunch.benchmarks.sweep.plan import Cell, Sweep
from raylaunch.benchmarks.sweep.schedule import Requests, due, first_of_each, latest, next_start
from raylaunch.errors import ConfigError, LaunchError
from raylaunch.sglang.children import how_ended, last_lines
from raylaunch.terminal.outcome import signals_held, written

if TYPE_CHECKING:
    from raylaunch.cluster.placement import Node
    from raylaunch.config import LaunchConfig
    from raylaunch.resolved import ResolvedLaunch

LOOK_S, ANSWER_S, TOLD_S = 0.2, 20.0, 5.0
GIVE_BACK_S = 25.0  # for a process that is to end to give everything back; it is killed then
LOGS = "logs"
STARTING = "starting"


@dataclass
class RunningCell:
    """One start, in its process.

    Attributes:
        at: what it is doing: a phase of the launch, or a measurement.
        beside: the other starts that ran for a part of the time.
        began: seconds since the epoch.
    """

    cell: Cell
    number: int
    job: Job
    log: Path
    deadline_s: float
    at: str = STARTING
    beside: set[str] = field(default_factory=set)
    began: float = 0.0
    _end_by: float = math.inf
    _kill_by: float = math.inf
    _outcome: dict[str, Any] | None = None
    _late: str = ""
    _process: subprocess.Popen[bytes] = field(init=False)
    _talk: Background = field(init=False)

    def begin(self) -> None:
        """Starts the process."""
        self.began, self._end_by = time.time(), time.monotonic() + self.deadline_s
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "raylaunch.benchmarks.sweep.cell"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is the sweep's to answer
            )
        self._talk = Background(self._talking)

    @property
    def start(self) -> str:
        """Its cell and its number, for whoever ran beside it."""
        return f"{self.cell.id}/{self.number}"

    def over(self) -> bool:
        """Whether it has ended; one that is past its deadline is told to, and killed if it does not."""
        if self._process.poll() is not None:
            self._talk.done(TOLD_S)
            return True
        now = time.monotonic()
        if now > self._kill_by:
            self.kill()
        elif now > self._end_by:
            self._late = f"was not done within {self.deadline_s:g} s; it was at {self.at}"
            self.end()
        return False

    def end(self) -> None:
        """Tells it to give everything back and to end."""
        self._end_by, self._kill_by = math.inf, time.monotonic() + GIVE_BACK_S
        self._process.terminate()

    def kill(self) -> None:
        """Ends it and all that it has started at once. Its ranks Ray ends, as those of any driver that is lost."""
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
        self._process.kill()

    def outcome(self) -> dict[str, Any]:
        """What came of it, once it is over: its figures, or its error in one line."""
        if self._outcome is not None and not self._late:
            return self._outcome
        how, last = how_ended(self._process.returncode), last_lines(self.log, 1)
        return {"error": self._late or f"its process {how} at {self.at}{f': {last}' if last else ''}"}

    def _talking(self) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(OSError), stdin:
            stdin.write(pickle.dumps(self.job))
        for text in stdout:
            event = json.loads(text)
            if "at" in event:
                self.at = event["at"]
            else:
                self._outcome = event


Show = Callable[[Sequence[RunningCell], dict[str, Any] | None], None]
"""Told all the time what runs; and of each start that has ended, its line."""


def run_sweep(
    sweep: Sweep, cells: Sequence[Cell], base: LaunchConfig, results: ResultsFile, show: Show, *, retry_failed: bool
) -> None:
    """Runs every start that is due, and writes its line. What goes wrong with one is in its line and stops no other.

    Raises:
        KeyboardInterrupt: told to end; all processes have, and nothing was written of their starts.
        LaunchError: there is no Ray, or no longer.
    """
    waiting = due(cells, sweep.starts, results.lines, retry_failed=retry_failed)
    wanted = first_of_each(waiting)
    sweeping = _Sweeping(sweep, results, show)
    launches = sweeping.checked(wanted, resolved)
    if not launches:
        return
    needed = sorted((cpus_of(launch) for launch in launches.values()), reverse=True)
    together = sweep.side_by_side if isinstance(sweep.side_by_side, int) else 1
    with ray_session(base, sum(needed[:together])) as session:
        import ray

        from raylaunch.ray_private import UV

        if session.started:  # its workers are of this environment, as those of a launch's own
            os.environ.setdefault(UV, "0")
        address = ray.get_runtime_context().gcs_address
        nodes = nodes_now(session.ended)
        able = [(cell, start) for cell, start in wanted if cell.id in launches]
        launches = sweeping.checked(able, lambda cell: in_cluster(launches[cell.id], nodes, address))
        waiting = [(cell, start) for cell, start in waiting if cell.id in launches]
        on_gpus = all(launch.device == "cuda" for launch in launches.values())
        chosen = sweep.side_by_side or ("auto" if on_gpus else 1)
        sweeping.run(waiting, launches, None if chosen == "auto" else int(chosen), session.ended)


def nodes_now(session_ended: Callable[[float], str]) -> list[Node]:
    """The cluster's nodes and what is free of them. Raises :class:`LaunchError` if Ray does not say so."""
    from raylaunch.cluster.placement import cluster_nodes

    require_ray(session_ended)
    try:
        return list(Background(cluster_nodes).result(ANSWER_S))
    except TimeoutError:
        raise LaunchError(f"Ray does not say within {ANSWER_S:g} s what is free", phase="PLACE") from None


def require_ray(session_ended: Callable[[float], str]) -> None:
    """Raises :class:`LaunchError` if the session is no more."""
    if why := session_ended(0.0):
        raise LaunchError(f"the sweep cannot go on: {why}", phase="PLACE", retryable=True)


def resolved(cell: Cell) -> ResolvedLaunch:
    """The launch of a cell. Raises :class:`ConfigError` where its configuration or its model makes it impossible."""
    from raylaunch.model_check import resolve

    if cell.config is None:
        assert cell.problem is not None
        raise cell.problem
    return resolve(cell.config)


def in_cluster(launch: ResolvedLaunch, nodes: Sequence[Node], address: str) -> ResolvedLaunch:
    """The same on its device, in the cluster at ``address``.

    Raises:
        ConfigError: its device cannot do what is asked.
        LaunchError: F13: the cluster could never hold it.
    """
    from raylaunch.cluster.placement import choose_device, impossible
    from raylaunch.model_check import on_device

    launch = on_device(launch, choose_device(launch.config, nodes))
    if launch.config.placement.placement_group is None and (why := impossible(launch.request, nodes)):
        raise LaunchError(f"placement can never be satisfied: {why}", "F13", "PLACE")
    return replace(launch, config=launch.config.replace({"placement.address": address}))


class _Sweeping:
    def __init__(self, sweep: Sweep, results: ResultsFile, show: Show) -> None:
        self._sweep, self._results, self._show = sweep, results, show
        self._logs = results.folder / LOGS
        self._running: list[RunningCell] = []

    def checked(
        self, wanted: Sequence[tuple[Cell, int]], check: Callable[[Cell], ResolvedLaunch]
    ) -> dict[str, ResolvedLaunch]:
        """The launches of those cells that can be launched, by cell. Of the others the error is written, as that of the
        start that is due: a result of an earlier one stays."""
        launches = {}
        for cell, start in wanted:
            try:
                launches[cell.id] = check(cell)
            except (ConfigError, LaunchError) as error:
                known = latest(self._results.lines, start).get((cell.id, start))
                text = in_a_line(error)
                if known is None or known["error"] != text:
                    self._write(cell, start, {"error": text}, None)
        return launches

    def run(
        self,
        waiting: list[tuple[Cell, int]],
        launches: Mapping[str, ResolvedLaunch],
        most: int | None,
        session_ended: Callable[[float], str],
    ) -> None:
        """Runs them all."""
        with written("output", self._logs):
            self._logs.mkdir(exist_ok=True)
        try:
            while waiting or self._running:
                for one in [one for one in self._running if one.over()]:
                    self._running.remove(one)
                    outcome = one.outcome()
                    if outcome["error"]:
                        require_ray(session_ended)
                    self._write(one.cell, one.number, outcome, one)
                    if outcome["error"]:
                        waiting = [job for job in waiting if job[0].id != one.cell.id]
                while (index := self._next(waiting, launches, most, session_ended)) is not None:
                    cell, number = waiting.pop(index)
                    self._begin(cell, number, launches[cell.id])
                self._show(self._running, None)
                time.sleep(LOOK_S)
        finally:
            with signals_held():
                self._end_all()

    def _next(
        self,
        waiting: Sequence[tuple[Cell, int]],
        launches: Mapping[str, ResolvedLaunch],
        most: int | None,
        session_ended: Callable[[float], str],
    ) -> int | None:
        count = len(self._running)
        asks = waiting and count and (most is None or count < most)  # of Ray, which takes its time
        asked = [requests_of(launches[cell.id]) for cell, _ in waiting]
        starting = [requests_of(one.job.resolved) for one in self._running if one.at == STARTING]
        free = [node.free for node in nodes_now(session_ended)] if asks else []
        return next_start(asked, starting, count, most, free)

    def _begin(self, cell: Cell, number: int, launch: ResolvedLaunch) -> None:
        log = self._logs / f"{cell.id}-{number}.log"
        job = Job(launch, self._sweep.measure, os.getpid())
        with signals_held():
            new = RunningCell(cell, number, job, log, self._sweep.deadline)
            new.begin()
            for other in self._running:
                if other.at != ENDING:  # it may have given its place back, and has nothing more to measure
                    other.beside.add(new.start)
                    new.beside.add(other.start)
            self._running.append(new)

    def _end_all(self) -> None:
        for one in self._running:
            one.end()
        end = time.monotonic() + GIVE_BACK_S + ANSWER_S
        while [one for one in self._running if not one.over()] and time.monotonic() < end:
            time.sleep(LOOK_S)
        self._running.clear()

    def _write(self, cell: Cell, number: int, outcome: dict[str, Any], ran: RunningCell | None) -> None:
        line = {
            "cell": cell.id,
            "start": number,
            "settings": dict(cell.named),
            "measure": self._sweep.measure.model_dump(mode="json", exclude_none=True),
            **outcome,
            "beside": sorted(ran.beside) if ran else [],
            "began": ran.began if ran else time.time(),
            "seconds": time.time() - ran.began if ran else 0.0,
            "log": f"{LOGS}/{ran.log.name}" if ran else "",
        }
        self._results.append(line)
        self._show(self._running, line)


def requests_of(launch: ResolvedLaunch) -> Requests:
    """What a launch asks of Ray."""
    return (launch.request,) * launch.config.parallel.replicas


def cpus_of(launch: ResolvedLaunch) -> float:
    """CPUs of all that it asks for."""
    return sum(request.cpus for request in requests_of(launch))
