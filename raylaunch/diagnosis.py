"""Which rank is to blame: decided from what was observed of every rank, apart from how it was observed.

The first error the driver sees is often a victim's: a peer's collective breaks within milliseconds of the death
that caused it, and when a node dies it breaks seconds before Ray says so. So causes are ranked, not timed.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from raylaunch.protocol import Phase, Step
from raylaunch.ray_deaths import said_by_ray

NODE_PATTERN = re.compile(r"node (has |was )?(died|dead|failed|terminated)|its node")
WAITING_PATTERN = re.compile(
    r"raylaunch_actors/communicator/|torch/distributed/|torch/cuda/(__init__|streams)\.py\", line \d+, in synchronize"
)
NODE_LOST = "F15"
SIGKILLED = ("-9", "137")  # how a process ends that the kernel, or anybody else, has killed


class Fate(enum.Enum):
    """What became of a rank, most blameworthy first."""

    DIED = "died"
    FAILED = "failed"
    SILENT = "silent"
    HUNG = "hung"
    VICTIM = "victim"
    WAITING = "waiting"
    ARRIVED = "arrived"


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


def root_cause(observations: Sequence[Observation]) -> Observation | None:
    """The rank to blame: by fate, by time, by who is furthest behind, by rank. None if all have arrived."""
    order = list(Fate)
    suspects = [one for one in observations if one.fate not in (Fate.ARRIVED, Fate.WAITING)]
    if not suspects:
        suspects = [one for one in observations if one.fate is Fate.WAITING]
    return min(suspects, key=lambda one: (order.index(one.fate), one.when, one.gates, one.rank), default=None)


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


def cause_of_death(ray_message: str, log_tail: str, oom_kills: int) -> str:
    """Why a process ended, in a phrase, from Ray's message, its last log lines and the kernel's recent kills.

    The kernel says only that it has killed something for want of memory: what says more of this process comes first.
    """
    if said := said_by_ray(ray_message):
        return said
    code = re.search(r"exit code (-?\d+)", ray_message)
    crash = re.search(r"Fatal Python error: ([^\n]+)", log_tail)
    if NODE_PATTERN.search(ray_message):
        return "its node died"
    if crash:
        return f"crashed: {crash.group(1).strip()}"
    if code and code.group(1) not in SIGKILLED:
        return f"exited with code {code.group(1)}"
    if re.search(r"memory pressure|low on memory|OutOfMemory|OUT_OF_MEMORY", ray_message):
        return "killed by Ray: the node ran low on memory"
    if oom_kills > 0:
        return "killed by the kernel: out of memory"
    if code:
        return f"exited with code {code.group(1)}: SIGKILL"
    return "ended without a message (an exit, SIGKILL, or a crash outside Python)"


def ended_by_watchdog(log_tail: str) -> bool:
    """Whether a process was ended by PyTorch because a peer did not come to NCCL's collective: a victim's death."""
    return "Watchdog caught collective operation timeout" in log_tail


def inside_collective(stack: str) -> bool:
    """Whether a rank's Python stack shows that it waits for its peers: in a collective, or for a GPU that is in one."""
    return bool(WAITING_PATTERN.search(stack))
