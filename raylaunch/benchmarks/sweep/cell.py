"""The process of one start: launches a cell, measures it, and tells what came of it.

Whatever goes wrong with it, a crash or a hang in native code, is that start's alone. On its standard input it gets a
:class:`Job`; on its standard output it writes a line of JSON at each phase, and a last one with its outcome. Its log,
which is its standard error, has the rest.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from raylaunch.errors import LaunchError, RequestError, RequestFailed, one_line
from raylaunch.startup.signals import INTERRUPTED, leave_when_told
from raylaunch.terminal.outcome import explain, last_line
from raylaunch.terminal.progress import LaunchProgress, stderr_console
from raylaunch.terminal.session import launched

if TYPE_CHECKING:
    from raylaunch.benchmarks.sweep.plan import Measure
    from raylaunch.engine import EngineBase
    from raylaunch.protocol import Step
    from raylaunch.resolved import ResolvedLaunch

PR_SET_PDEATHSIG = 1
ENDING = "shutting down"
Tell = Callable[[dict[str, Any]], None]
Measurement = tuple[str, Sequence[int], Callable[[int], str], Callable[[int], Any]]
"""A name, sizes, why one of them cannot be measured ("" if it can), and what measures it."""


@dataclass(frozen=True)
class Job:
    """What the process is told.

    Attributes:
        parent: the process that waits for it.
    """

    resolved: ResolvedLaunch
    measure: Measure
    parent: int


class ToldProgress(LaunchProgress):
    """Tells each phase of the launch, beside the log."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(stderr_console())
        self._tell, self._told = tell, ""

    def step(self, step: Step, index: int, steps: int) -> None:
        super().step(step, index, steps)
        if step.phase.name != self._told:
            self._told = step.phase.name
            self._tell({"at": self._told})


def measured(job: Job, tell: Tell) -> dict[str, Any]:
    """Figures of one launch, by measurement, and where its ranks ran with what.

    Raises:
        RaylaunchError: it cannot be launched, or its ranks were lost.
    """
    with launched(job.resolved, show_report=False, shown_by=ToldProgress(tell)) as engine:
        launch = launch_figures(engine)
        with closing(measurements(engine, job.measure)) as wanted:
            figures, left_out = figures_of(wanted, tell, lambda: engine.health(ask_ranks=False).ready)
        tell({"at": ENDING})
        return {"figures": {"launch": launch, **figures}, "left_out": left_out, **ranks_and_versions(engine)}


def figures_of(
    wanted: Iterable[Measurement], tell: Tell, ready: Callable[[], bool]
) -> tuple[dict[str, list[Any]], list[str]]:
    """Figures by measurement, and which sizes are left out and why: a request that fails costs its own size alone.

    Raises:
        RequestError, RequestFailed: the ranks are not ``ready`` any more, so there is nothing else to measure.
    """
    figures: dict[str, list[Any]] = {}
    left_out = []
    for name, sizes, refusal, measure in wanted:
        figures[name] = []
        for size in sizes:
            tell({"at": f"{name} {size}"})
            why = refusal(size)
            if not why:
                try:
                    figures[name].append(asdict(measure(size)))
                except (RequestError, RequestFailed) as error:
                    if not ready():
                        raise
                    why = one_line(error)
            if why:
                left_out.append(f"{name} {size}: {why}")
    return figures, left_out


def measurements(engine: EngineBase, wanted: Measure) -> Generator[Measurement, None, None]:
    """What is to be measured; each one's server or the like is there until the next is asked for."""
    from raylaunch.benchmarks import decode, prefill
    from raylaunch.benchmarks.sweep import serving

    if (one := wanted.prefill) is not None:
        refusal = partial(prefill.refusal, engine)
        yield "prefill", one.tokens, refusal, partial(prefill.time_prefill, engine, repeat=one.repeat)
    if (some := wanted.decode) is not None:
        refusal = partial(decode.refusal, engine, new_tokens=some.new_tokens)
        measure = partial(decode.time_decode, engine, new_tokens=some.new_tokens, repeat=some.repeat)
        yield "decode", some.batch_sizes, refusal, measure
    if (load := wanted.serve) is not None:
        with serving.served(engine) as port:
            vocabulary = engine.shape.vocab_size
            serve = partial(serving.time_serving, port=port, vocabulary=vocabulary, wanted=load)
            yield "serve", load.concurrency, lambda size: serving.refusal(engine, load, size), serve


def launch_figures(engine: EngineBase) -> dict[str, Any]:
    """Seconds to ready and of each phase; of several replicas those of the slowest."""
    from raylaunch.engine.replicas import replicas_of
    from raylaunch.protocol import Phase

    report = max((one.report for one in replicas_of(engine)), key=lambda one: one.seconds)
    return {
        "ready": report.seconds,
        "phases": {phase.name: report.elapsed(phase) for phase in Phase if phase is not Phase.SERVE},
        "all_reduce": report.describe(Phase.CONNECT),
        "kv_tokens": engine.kv_tokens,
    }


def ranks_and_versions(engine: EngineBase) -> dict[str, Any]:
    """Where each rank runs, on what card, and with which versions."""
    from raylaunch.cluster.placement import cluster_nodes
    from raylaunch.engine.replicas import replicas_of
    from raylaunch.protocol import Gate, Identity

    prefix, version = "accelerator_type:", "version of "
    cards = {node.address: [one for one in node.total if one.startswith(prefix)] for node in cluster_nodes()}
    ranks, versions = [], dict[str, str]()
    for replica in replicas_of(engine):
        places = {place.rank: place.node for place in replica.report.places}
        for arrival in (one for _, arrivals in replica.report.facts(Gate.MEET) for one in arrivals):
            facts, node = arrival.facts, places[arrival.rank]
            assert isinstance(facts, Identity)
            card = ", ".join(one.removeprefix(prefix) for one in cards.get(node, [])) if facts.gpu else ""
            ranks.append({"node": node, "device": facts.device, "gpu": facts.gpu, "card": card})
            prints = facts.fingerprint.items()
            versions |= {name.removeprefix(version): one for name, one in prints if name.startswith(version)}
    return {"ranks": ranks, "versions": {name: one for name, one in versions.items() if one != "absent"}}


def outcome_of(job: Job, tell: Tell) -> dict[str, Any]:
    """What came of it: :func:`measured`, or an error in one line, with all that is known of it in the log."""
    try:
        return {"error": None, **measured(job, tell)}
    except LaunchError as error:
        print(explain(error), file=sys.stderr)
        return {"error": in_a_line(error)}
    except Exception as error:
        traceback.print_exc()
        return {"error": in_a_line(error)}


def in_a_line(error: Exception) -> str:
    """An error as its last line says it."""
    if isinstance(error, LaunchError):
        return last_line(error)
    return f"{type(error).__name__} {error}".splitlines()[0]


def main() -> None:
    """Ends with code 0 once its outcome is told, whatever it is."""
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print belongs into the log
    leave_when_told()
    job: Job = pickle.load(sys.stdin.buffer)
    # Killed as well, nobody is left to end it: Ray then ends its ranks, as those of any driver that is lost.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != job.parent:
        os._exit(INTERRUPTED)

    def tell(event: dict[str, Any]) -> None:
        told.write(json.dumps(event) + "\n")

    try:
        tell(outcome_of(job, tell))
    except KeyboardInterrupt:
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    sys.stderr.flush()
    os._exit(0)  # threads that Ray has left must not meet an interpreter that ends


if __name__ == "__main__":
    main()
