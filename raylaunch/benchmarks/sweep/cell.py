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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from raylaunch.errors import LaunchError
from raylaunch.startup.signals import INTERRUPTED, leave_when_told
from raylaunch.terminal.outcome import explain
from raylaunch.terminal.progress import LaunchProgress, stderr_console
from raylaunch.terminal.session import launched

if TYPE_CHECKING:
    from raylaunch.benchmarks.sweep.plan import Measure
    from raylaunch.engine import Engine
    from raylaunch.protocol import Step
    from raylaunch.resolved import ResolvedLaunch

PR_SET_PDEATHSIG = 1
Tell = Callable[[dict[str, Any]], None]


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
        RaylaunchError: it cannot be launched, or a request failed.
    """
    with launched(job.resolved, show_report=False, shown_by=ToldProgress(tell)) as engine:
        from raylaunch.benchmarks import decode, prefill
        from raylaunch.benchmarks.sweep.serving import time_serving

        figures: dict[str, Any] = {"launch": launch_figures(engine)}
        left_out = []
        wanted = job.measure
        if wanted.prefill is not None:
            tell({"at": "prefill"})
            figures["prefill"] = []
            for tokens in wanted.prefill.tokens:
                if why := prefill.refusal(engine, tokens):
                    left_out.append(f"prefill {tokens}: {why}")
                else:
                    figures["prefill"].append(asdict(prefill.time_prefill(engine, tokens, wanted.prefill.repeat)))
        if (one := wanted.decode) is not None:
            tell({"at": "decode"})
            figures["decode"] = []
            for requests in one.batch_sizes:
                if why := decode.refusal(engine, requests, one.new_tokens):
                    left_out.append(f"decode {requests}: {why}")
                else:
                    figures["decode"].append(asdict(decode.time_decode(engine, requests, one.new_tokens, one.repeat)))
        if wanted.serve is not None:
            tell({"at": "serve"})
            figures["serve"], refused = time_serving(engine, wanted.serve)
            left_out += refused
        tell({"at": "shutting down"})
        return {"figures": figures, "left_out": left_out, **surroundings(engine)}


def launch_figures(engine: Engine) -> dict[str, Any]:
    """Seconds to ready and of each phase; of several replicas those of the slowest."""
    from raylaunch.protocol import Phase
    from raylaunch.replicas import replicas_of

    report = max((one.report for one in replicas_of(engine)), key=lambda one: one.seconds)
    return {
        "ready": report.seconds,
        "phases": {phase.name: report.elapsed(phase) for phase in Phase if phase is not Phase.SERVE},
        "all_reduce": report.describe(Phase.CONNECT),
        "kv_tokens": engine.kv_tokens,
    }


def surroundings(engine: Engine) -> dict[str, Any]:
    """Where each rank runs, on what card, and with which versions."""
    from raylaunch.cluster.placement import cluster_nodes
    from raylaunch.protocol import Gate, Identity
    from raylaunch.replicas import replicas_of

    prefix, version = "accelerator_type:", "version of "
    cards = {node.address: [one for one in node.total if one.startswith(prefix)] for node in cluster_nodes()}
    ranks, versions = [], dict[str, str]()
    for replica in replicas_of(engine):
        said = {
            one.rank: one.facts for _, arrivals in replica.report.facts(Gate.MEET) for one in arrivals
            if isinstance(one.facts, Identity)
        }  # fmt: skip
        for place in replica.report.places:
            card = ", ".join(one.removeprefix(prefix) for one in cards.get(place.node, []))
            own = said.get(place.rank)
            gpu = own.gpu if own else ""
            device = own.device if own else place.device
            ranks.append({"node": place.node, "device": device, "gpu": gpu, "card": card if gpu else ""})
            prints = own.fingerprint if own else {}
            versions |= {name.removeprefix(version): one for name, one in prints.items() if name.startswith(version)}
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
        return error.headline().splitlines()[0]
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
