"""Which rank is to blame and in which words: decided from what was seen of every rank, apart from how it was seen.

The first error the driver sees is often a secondary one: a peer's collective breaks within milliseconds of the death
that caused it, seconds before a process that was killed is gone, and when a node dies seconds before Ray says so. So
causes are ranked first, and timed only among those of one kind.
"""

from __future__ import annotations

import enum
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylaunch.group.ray_deaths import said_by_ray
from raylaunch.protocol import Arrival, Failure, Phase, Step
from raylaunch.values.signal_names import signal_name

if TYPE_CHECKING:
    from raylaunch_actors.gate import RankState
    from raylaunch_actors.process_watch import Sighting

NODE_PATTERN = re.compile(r"node (has |was )?(died|dead|failed|terminated)|its node")
WAITING_PATTERN = re.compile(
    r"raylaunch_actors/communicator/|torch/distributed/|torch/cuda/(__init__|streams)\.py\", line \d+, in synchronize"
)
NODE_LOST = "F15"
LEFT = "left its serve loop"  # stands for Ray's message where nothing has died
SIGKILLED = ("-9", "137")  # how a process ends that the kernel, or anybody else, has killed
ASKED_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CRASHES = (
    signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS,
)  # fmt: skip
"""Signals that a process gets for what it does itself."""
IN_PYTHONS_WORDS = {
    "Segmentation fault": signal.SIGSEGV, "Aborted": signal.SIGABRT, "Bus error": signal.SIGBUS,
    "Illegal instruction": signal.SIGILL, "Floating-point exception": signal.SIGFPE,
}  # fmt: skip
"""Its fault handler may crash in turn, as it walks the stacks of threads that run: the first of both counts."""


class Fate(enum.Enum):
    """What became of a rank, most blameworthy first."""

    DIED = "died"
    FAILED = "failed"
    STOPPED = "stopped"
    SILENT = "silent"
    HUNG = "hung"
    SECONDARY = "secondary"  # it has failed for want of a peer
    WAITING = "waiting"
    ARRIVED = "arrived"


@dataclass(frozen=True)
class Seen:
    """All that was seen of one rank, at most; :func:`observe` says what it amounts to.

    Attributes:
        rank: tensor-parallel rank.
        node_lost: its node does not answer.
        process: what its process was seen to do that one that runs does not; None for one that runs, or is unseen.
        death: Ray's message that its actor is dead.
        failure: the error that it has reported.
        arrival: the gate that it stands at.
        state: its answer to a question.
        stack: Python stack of its own thread, if it answers.
        letter: state letter of its process; "" if there is none, None if the agent of its node does not say.
        started: whether it had said which process it is.
        log: last lines of its log.
        oom_kills: how many processes the kernel of its node has just killed for want of memory.
    """

    rank: int
    node_lost: bool = False
    process: Sighting | None = None
    death: str | None = None
    failure: Failure | None = None
    arrival: Arrival | None = None
    state: RankState | None = None
    stack: str = ""
    letter: str | None = None
    started: bool = True
    log: str = ""
    oom_kills: int = 0


@dataclass(frozen=True)
class Observation:
    """One rank at the time of a failure.

    Attributes:
        rank: tensor-parallel rank.
        fate: what became of it.
        detail: one phrase: the error, the cause of death, or what it was doing.
        when: seconds since the epoch at which it happened, 0 if unknown.
        step: where it was.
        code: fault number, if the rank knew it.
        gates: how many gates it had come to, 0 if unknown.
    """

    rank: int
    fate: Fate
    detail: str = ""
    when: float = 0.0
    step: Step | None = None
    code: str | None = None
    gates: int = 0


def observe(seen: Seen) -> Observation:
    """What became of a rank. What is certain comes first, whatever was seen first: a lost node, the rank's own error,
    the end of its process, a process that is stopped; only then that its failure is secondary or it says nothing."""
    rank, process, failure, state = seen.rank, seen.process, seen.failure, seen.state
    if seen.node_lost:
        return Observation(rank, Fate.DIED, "its node does not answer", code=NODE_LOST)
    if failure is not None and not failure.secondary:
        return _reported(failure, Fate.FAILED)
    ended = process is not None and process.ended
    if ended or seen.death is not None:
        when = process.when if process is not None and process.ended else 0.0
        if ended_by_watchdog(seen.log):
            detail = "NCCL's watchdog ended it: a peer did not come to a collective"
            return Observation(rank, Fate.SECONDARY, detail, when)
        status = process.status if process is not None and process.ended else None
        return Observation(rank, Fate.DIED, cause_of_death(seen.death or "", seen.log, seen.oom_kills, status), when)
    if process is not None:
        return Observation(rank, Fate.STOPPED, stopped_by(process.status), process.when)
    if failure is not None:
        return _reported(failure, Fate.SECONDARY)
    if seen.arrival is not None:
        step = seen.arrival.step
        return Observation(rank, Fate.ARRIVED, f"arrived at {step}", seen.arrival.arrived, step)
    if state is not None and state.waiting:
        detail = f"stands at {state.step}, which was heard too late, or is not told by the agent of its node"
        return Observation(rank, Fate.WAITING, detail, step=state.step, gates=state.gates)
    if state is not None and inside_collective(seen.stack):
        detail = f"waits for its peers in a collective ({state.activity})"
        return Observation(rank, Fate.WAITING, detail, step=state.step, gates=state.gates)
    if state is not None:
        return Observation(rank, Fate.HUNG, f"still busy: {state.activity}", step=state.step, gates=state.gates)
    if not seen.started:
        return Observation(rank, Fate.SILENT, "its process has not started")
    if seen.letter is None:
        return Observation(rank, Fate.SILENT, "does not answer, and neither does the agent of its node")
    if not seen.letter:
        return Observation(rank, Fate.DIED, "its process is gone")
    return Observation(rank, Fate.SILENT, "does not answer: native code holds the interpreter")


def _reported(failure: Failure, fate: Fate) -> Observation:
    first = next(iter(failure.message.strip().splitlines()), "")
    return Observation(failure.rank, fate, f"{failure.error}: {first}", failure.when, failure.step, failure.code)


def root_cause(observations: Sequence[Observation]) -> Observation | None:
    """The rank to blame: by fate, by time, by who is furthest behind, by rank. None if all have arrived."""
    order = list(Fate)
    suspects = [one for one in observations if one.fate not in (Fate.ARRIVED, Fate.WAITING)]
    if not suspects:
        suspects = [one for one in observations if one.fate is Fate.WAITING]
    return min(suspects, key=lambda one: (order.index(one.fate), one.when, one.gates, one.rank), default=None)


def sentence(observations: Sequence[Observation], cause: Observation | None, waited_s: float) -> str:
    """What went wrong, in one line: the rank to blame, and others that have ended or are stopped as well.

    Args:
        waited_s: seconds without a sign of life or of work; 0 if that is not known.
    """
    if cause is None:
        return "the launch failed and every rank says that it is fine"
    name = f"rank {cause.rank}"
    if cause.fate in (Fate.HUNG, Fate.WAITING, Fate.SILENT, Fate.STOPPED):
        waited = f" for {waited_s:.0f} s" if waited_s else ""
        text = f"{name} made no progress{waited}: {cause.detail}"
    elif cause.fate is Fate.DIED:
        text = f"{name} died: {cause.detail}"
    elif cause.fate is Fate.SECONDARY:
        return f"{name} lost its peers and no rank says why: {cause.detail}"
    else:
        text = f"{name} failed: {cause.detail}"
    others = [one for one in observations if one.rank != cause.rank and one.fate in (Fate.DIED, Fate.STOPPED)]
    return text + "".join(f"; rank {one.rank}: {one.detail}" for one in others)


def fault_code(cause: Observation, phase: Phase) -> str | None:
    """Number of the fault that a cause amounts to in a phase."""
    if cause.code:
        return cause.code
    if cause.fate is Fate.DIED:
        return "F07" if phase is Phase.SERVE else "F06"
    if cause.fate is Fate.FAILED:
        return "F05" if phase is Phase.CAPTURE else "F07" if phase is Phase.SERVE else None
    return "F08"


def may_help_to_retry(cause: Observation | None) -> bool:
    """Whether another attempt may end differently: a process or a node dies by chance, a rule is broken every time."""
    return cause is not None and cause.code in (None, NODE_LOST) and cause.fate is not Fate.FAILED


def cause_of_death(ray_message: str, log_tail: str, oom_kills: int, status: int | None = None) -> str:
    """Why a process ended, in a phrase, from Ray's message, its last log lines, the kernel's recent kills and, where
    it was seen, how the kernel says that it ends (as ``waitpid`` reports it).

    The kernel says only that it has killed something for want of memory: what says more of this process comes first.
    """
    if said := said_by_ray(ray_message):
        return said
    code = re.search(r"exit code (-?\d+)", ray_message)
    intended = re.search(r"INTENDED_SYSTEM_EXIT Worker exit detail: ([^.]+)\.", ray_message)
    if ray_message == LEFT and status is None:
        return LEFT
    if NODE_PATTERN.search(ray_message):
        return "its node died"
    if re.search(r"memory pressure|low on memory|OutOfMemory|OUT_OF_MEMORY", ray_message):
        return "killed by Ray: the node ran low on memory"
    if "receives a SIGTERM" in ray_message:  # before it was a rank: Ray's own words
        return "was asked to end by SIGTERM"
    if intended and not code:  # Ray sends SIGTERM then, which is nobody else's
        return f"ended by Ray: {intended.group(1)}"
    crash = re.search(r"Fatal Python error: ([^\n]+)", log_tail)
    if status is not None:
        return ended_by(status, oom_kills, crash.group(1).strip() if crash else "")
    if crash:
        return f"crashed: {crash.group(1).strip()}"
    if code and code.group(1) not in SIGKILLED:
        return f"exited with code {code.group(1)}"
    if oom_kills > 0:
        return "killed by the kernel: out of memory"
    if code:
        return f"exited with code {code.group(1)}: SIGKILL"
    return "ended without a message (an exit, SIGKILL, or a crash outside Python)"


def ended_by(status: int, oom_kills: int = 0, crash: str = "") -> str:
    """How a process ended, in a phrase.

    Args:
        status: as ``waitpid`` reports it.
        oom_kills: how many processes the kernel has just killed for want of memory.
        crash: what Python's fault handler has written of it.
    """
    number = status & 0x7F
    if not number:
        return f"exited with code {status >> 8 & 0xFF}"
    name = signal_name(number)
    if number in ASKED_TO_END:
        return f"was asked to end by {name}"
    if number in CRASHES:
        first = IN_PYTHONS_WORDS.get(crash)
        return f"crashed: {crash or signal.strsignal(number)} ({signal_name(first) if first else name})"
    if number == signal.SIGKILL and oom_kills > 0:
        return "killed by the kernel: out of memory (SIGKILL)"
    return f"killed by {name}"


def ended_from_outside(process: Sighting) -> bool:
    """Whether a process ends by a signal that no process gets for what it or its peers do."""
    return process.ended and (process.status or 0) & 0x7F not in (0, *CRASHES)


def stopped_by(status: int | None) -> str:
    """What holds a process that is stopped, from the signal's number, 0 for a debugger."""
    return f"its process is stopped ({signal_name(status)})" if status else "its process is held by a debugger"


def ended_by_watchdog(log_tail: str) -> bool:
    """Whether a process was ended by PyTorch because a peer did not come to NCCL's collective: it is secondary."""
    return "Watchdog caught collective operation timeout" in log_tail


def inside_collective(stack: str) -> bool:
    """Whether a rank's Python stack shows that it waits for its peers: in a collective, or for a GPU that is in one."""
    return bool(WAITING_PATTERN.search(stack))
