"""Collects what is needed to explain a failure, while the ranks that can still answer are alive."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from raylaunch.diagnosis import (
    NODE_LOST,
    Fate,
    Observation,
    cause_of_death,
    ended_by_watchdog,
    fault_code,
    inside_collective,
    may_help_to_retry,
    root_cause,
)
from raylaunch.errors import LaunchError, RankEvidence
from raylaunch.group import RankGroup, StepOutcome
from raylaunch.protocol import Phase, Step, Violation

if TYPE_CHECKING:
    from raylaunch_actors.gate import RankState

OWN_CODE = re.compile(r"[/\\\\](raylaunch_actors|raylaunch)[/\\\\]")
PROBE_S = 1.0
LATE_PROBE_S = 2.0  # more for ranks that did not answer at once: there may be fewer cores than ranks
VICTIM_PROBE_S = 2.0
LOG_LINES = 400  # a process that aborts writes its threads' stacks after the reason
SHOWN_LINES = 20


def explain_failure(
    group: RankGroup, outcome: StepOutcome, step: Step | None, phase: Phase, waited_s: float
) -> LaunchError:
    """The error for a step that did not complete: observes every rank, finds the cause, gathers its evidence.

    Args:
        step: where ranks were that can no longer say so themselves.
        phase: the phase that failed.
        waited_s: seconds for which the ranks that did not come were waited for; 0 if that is not known.
    """
    _take_in_ended(group, outcome)
    observations, stacks, tails = _observe_all(group, outcome)
    if all(one.fate in (Fate.VICTIM, Fate.ARRIVED, Fate.WAITING) for one in observations) and outcome.pending:
        # Only victims so far: when a node dies its peers notice seconds before Ray does. Ask again, longer.
        time.sleep(VICTIM_PROBE_S)
        if _take_in_ended(group, outcome):
            observations, stacks, tails = _observe_all(group, outcome)
    cause = root_cause(observations)
    error = LaunchError(_summary(cause, waited_s), retryable=may_help_to_retry(cause))
    error.phase = phase.name
    where = (cause.step if cause and cause.step else None) or step
    if where is not None and where.phase is phase:
        error.round, error.shape, error.iteration = where.round, where.shape, where.iteration
    if cause is not None:
        error.rank, error.code = cause.rank, fault_code(cause, phase)
    proven = cause is not None and cause.fate in (Fate.DIED, Fate.FAILED)  # else a victim may know more than the cause
    for one in observations:
        failure = outcome.failures.get(one.rank)
        error.ranks.append(
            evidence_of(
                group,
                one.rank,
                state=one.detail,
                traceback=own_frames(failure.traceback) if failure and not (failure.victim and proven) else "",
                stacks=own_frames(stacks.get(one.rank, "")),
                log_tail=tails.get(one.rank, ""),
            )
        )
    return error


def explain_violation(group: RankGroup, violation: Violation) -> LaunchError:
    """The error for a broken rule: what each rank said."""
    step = violation.step
    error = LaunchError(violation.summary, violation.code, step.phase.name, step.round, step.shape, step.iteration)
    error.rank = violation.rank
    error.ranks = [
        evidence_of(group, member.rank, state=violation.states.get(member.rank, f"at {step}"))
        for member in group.members
    ]
    return error


def evidence_of(
    group: RankGroup, rank: int, state: str = "", traceback: str = "", stacks: str = "", log_tail: str = ""
) -> RankEvidence:
    """Evidence of a rank with its node and process filled in."""
    process = group.members[rank].process
    return RankEvidence(
        rank,
        node=process.address if process else "",
        pid=process.pid if process else 0,
        device=process.device if process else "",
        state=state,
        traceback=traceback,
        stacks=stacks,
        log_tail=log_tail,
        log_file=process.log_files[0] if process and process.log_files else "",
        core_dump=_core_dump(group, rank),
    )


def _core_dump(group: RankGroup, rank: int) -> str:
    """The dump that a rank's GPU has written, in debug mode; "" if there is none."""
    file = group.members[rank].spec.core_file
    found: str = group.ask_agent(rank, "existing", file, default="") if file else ""
    return found


def own_frames(stack: str, innermost: int = 2) -> str:
    """A Python stack without the frames of libraries, except the innermost ones; the rank's log has all of them."""
    blocks: list[list[str]] = [[]]
    for line in stack.rstrip().splitlines():
        if line.startswith('  File "') or not line.startswith(" "):
            blocks.append([])
        blocks[-1].append(line)
    blocks = [block for block in blocks if block]
    frames = [index for index, block in enumerate(blocks) if block[0].startswith('  File "')]
    kept, dropped = [], 0
    for index, block in enumerate(blocks):
        if index in frames[:-innermost] and not OWN_CODE.search(block[0]):
            dropped += 1
            continue
        if dropped:
            kept.append(f"    ... {dropped} frames of libraries")
            dropped = 0
        kept.extend(block)
    return "\n".join(kept)


def _take_in_ended(group: RankGroup, outcome: StepOutcome) -> bool:
    """Adds ranks that have ended since the step stopped waiting: a crowded machine brings their news late."""
    late = group.ended(0)
    known = {*outcome.arrivals, *outcome.failures, *outcome.deaths}
    outcome.deaths.update({rank: text for rank, text in late.deaths.items() if rank not in outcome.deaths})
    outcome.failures.update({rank: one for rank, one in late.failures.items() if rank not in outcome.failures})
    return bool({*late.deaths, *late.failures} - known)


def _observe_all(group: RankGroup, outcome: StepOutcome) -> tuple[list[Observation], dict[int, str], dict[int, str]]:
    """What became of every rank; stacks and last log lines by rank. All ranks are asked at the same time."""
    ranks = [member.rank for member in group.members]
    pending = [rank for rank in ranks if rank not in {*outcome.arrivals, *outcome.failures, *outcome.deaths}]
    states = group.states(pending, PROBE_S)
    if late := [rank for rank in pending if rank not in states]:
        states |= group.states(late, LATE_PROBE_S)
    stacks: dict[int, str] = group.ask("stacks", list(states), PROBE_S)
    silent = [rank for rank in pending if rank not in states]
    lost = group.find_lost_nodes([*outcome.deaths, *silent])
    tails: dict[int, str] = {}
    observations = []
    for rank in ranks:
        if rank in lost:
            observations.append(Observation(rank, Fate.DIED, "its node does not answer", code=NODE_LOST))
        elif rank in states:
            observations.append(_observe_answering(rank, states[rank], stacks.get(rank, "")))
        elif rank in silent:
            observations.append(_observe_silent(group, rank, stacks, tails))
        else:
            observations.append(_observe_reported(group, rank, outcome, tails))
    return observations, stacks, tails


def _observe_reported(group: RankGroup, rank: int, outcome: StepOutcome, tails: dict[int, str]) -> Observation:
    """A rank that has arrived, failed or died."""
    if rank in outcome.deaths:
        unread = "<its log cannot be read>"
        log = group.ask_agent(rank, "log_tail", _log_files(group, rank), LOG_LINES, default=unread)
        tails[rank] = "\n".join(log.splitlines()[-SHOWN_LINES:])
        if ended_by_watchdog(log):
            return Observation(rank, Fate.VICTIM, "NCCL's watchdog ended it: a peer did not come to a collective")
        kills = group.ask_agent(rank, "out_of_memory_kills", default=0)
        return Observation(rank, Fate.DIED, cause_of_death(outcome.deaths[rank], log, kills))
    if rank in outcome.failures:
        failure = outcome.failures[rank]
        fate = Fate.VICTIM if failure.victim else Fate.FAILED
        first = next(iter(failure.message.strip().splitlines()), "")
        return Observation(rank, fate, f"{failure.error}: {first}", failure.when, failure.step, failure.code)
    arrival = outcome.arrivals[rank]
    return Observation(rank, Fate.ARRIVED, f"arrived at {arrival.step}", arrival.arrived, arrival.step)


def _observe_answering(rank: int, state: RankState, stack: str) -> Observation:
    """A rank that has not come and says what it is doing."""
    if inside_collective(stack):
        detail = f"waits for its peers in a collective ({state.activity})"
        return Observation(rank, Fate.WAITING, detail, step=state.step, gates=state.gates)
    return Observation(rank, Fate.HUNG, f"still busy: {state.activity}", step=state.step, gates=state.gates)


def _observe_silent(group: RankGroup, rank: int, stacks: dict[int, str], tails: dict[int, str]) -> Observation:
    """A rank that has not come and says nothing, on a node that is there."""
    process, files = group.members[rank].process, _log_files(group, rank)
    if process is None:
        return Observation(rank, Fate.SILENT, "its process has not started")
    pid = process.pid
    states = group.ask_agent(rank, "process_states", [pid])
    if states is None:
        return Observation(rank, Fate.SILENT, "does not answer, and neither does the agent of its node")
    if not states:
        tails[rank] = group.ask_agent(rank, "log_tail", files, default="")
        return Observation(rank, Fate.DIED, "its process is gone")
    if states[pid] in "Tt":
        return Observation(rank, Fate.SILENT, "its process is stopped (SIGSTOP or a debugger)")
    stacks[rank] = group.ask_agent(rank, "native_stacks", pid, files, default="")
    return Observation(rank, Fate.SILENT, "does not answer: native code holds the interpreter")


def _log_files(group: RankGroup, rank: int) -> tuple[str, ...]:
    process = group.members[rank].process
    return process.log_files if process else ()


def _summary(cause: Observation | None, waited_s: float) -> str:
    if cause is None:
        return "the launch failed and every rank says that it is fine"
    name = f"rank {cause.rank}"
    if cause.fate in (Fate.HUNG, Fate.WAITING, Fate.SILENT):
        waited = f" for {waited_s:.0f} s" if waited_s else ""
        return f"{name} made no progress{waited}: {cause.detail}"
    if cause.fate is Fate.DIED:
        return f"{name} died: {cause.detail}"
    if cause.fate is Fate.VICTIM:
        return f"{name} lost its peers and no rank says why: {cause.detail}"
    return f"{name} failed: {cause.detail}"
