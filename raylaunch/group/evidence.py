"""Collects what is needed to explain a failure, while the ranks that can still answer are alive."""

from __future__ import annotations

import re
import signal
import time
from dataclasses import replace

from raylaunch.errors import LaunchError, RankEvidence
from raylaunch.group.diagnosis import (
    Fate,
    Observation,
    Seen,
    fault_code,
    may_help_to_retry,
    observe,
    root_cause,
    sentence,
)
from raylaunch.group.outcome import StepOutcome
from raylaunch.group.ranks import RankGroup
from raylaunch.protocol import Phase, Step, Violation

OWN_CODE = re.compile(r"[/\\\\](raylaunch_actors|raylaunch)[/\\\\]")
PROBE_S = 1.0
LATE_PROBE_S = 2.0  # more for ranks that did not answer at once: there may be fewer cores than ranks
SECONDARY_PROBE_S = 2.0
LAST_WORDS_S = 1.0
LOOK_S = 0.02
RAYS_OWN = (None, 1 << 8, int(signal.SIGKILL), int(signal.SIGTERM))  # how processes end that Ray ends
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
    if all(one.fate in (Fate.SECONDARY, Fate.ARRIVED, Fate.WAITING) for one in observations) and outcome.pending:
        # Only secondary failures so far: when a node dies its peers notice seconds before Ray does. Ask again, longer.
        time.sleep(SECONDARY_PROBE_S)
        if _take_in_ended(group, outcome):
            observations, stacks, tails = _observe_all(group, outcome)
    cause = root_cause(observations)
    error = LaunchError(sentence(observations, cause, waited_s), retryable=may_help_to_retry(cause))
    error.phase = phase.name
    where = (cause.step if cause and cause.step else None) or step
    if where is not None and where.phase is phase:
        error.round, error.shape, error.iteration = where.round, where.shape, where.iteration
    if cause is not None:
        error.rank, error.code = cause.rank, fault_code(cause, phase)
    proven = cause is not None and cause.fate in (Fate.DIED, Fate.FAILED)  # else another may know more than the cause
    for one in observations:
        failure = outcome.failures.get(one.rank)
        error.ranks.append(
            evidence_of(
                group,
                one.rank,
                state=one.detail,
                traceback=own_frames(failure.traceback) if failure and not (failure.secondary and proven) else "",
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
    known = {*outcome.arrivals, *outcome.failures, *outcome.deaths, *outcome.seen}
    outcome.seen |= late.seen
    outcome.deaths.update({rank: text for rank, text in late.deaths.items() if rank not in outcome.deaths})
    outcome.failures.update({rank: one for rank, one in late.failures.items() if rank not in outcome.failures})
    return bool({*late.deaths, *late.failures, *late.seen} - known)


def _observe_all(group: RankGroup, outcome: StepOutcome) -> tuple[list[Observation], dict[int, str], dict[int, str]]:
    """What became of every rank; stacks and last log lines by rank. All ranks are asked at the same time."""
    ranks = [member.rank for member in group.members]
    _await_last_words(group, outcome)
    ended = {rank for rank, one in outcome.seen.items() if one.ended}
    pending = [rank for rank in ranks if rank not in {*outcome.arrivals, *outcome.failures, *outcome.deaths, *ended}]
    states = group.states(pending, PROBE_S)
    late = [rank for rank in pending if rank not in {*states, *outcome.seen}]
    lost = group.find_lost_nodes(late)  # of these nothing more comes
    if late := [rank for rank in late if rank not in lost]:
        states |= group.states(late, LATE_PROBE_S)
    stacks: dict[int, str] = group.ask("stacks", list(states), PROBE_S)
    silent = [rank for rank in pending if rank not in states]
    if silent:  # one that crashes writes down its stacks before it ends
        outcome.seen |= group.sightings()
    lost |= group.find_lost_nodes([*outcome.deaths, *(rank for rank in silent if rank not in late)])
    tails: dict[int, str] = {}
    observations = []
    for rank in ranks:
        seen = Seen(
            rank,
            node_lost=rank in lost,
            process=outcome.seen.get(rank),
            death=outcome.deaths.get(rank),
            failure=outcome.failures.get(rank),
            arrival=outcome.arrivals.get(rank),
            state=states.get(rank),
            stack=stacks.get(rank, ""),
        )
        if rank not in lost:
            seen = _with_what_its_agent_says(group, seen, stacks, tails)
        observations.append(observe(seen))
    return observations, stacks, tails


def _await_last_words(group: RankGroup, outcome: StepOutcome) -> None:
    """Gives Ray a moment to say of dying ranks whether it has ended them itself, and why."""
    outcome.seen |= group.sightings()
    end = time.monotonic() + LAST_WORDS_S
    while time.monotonic() < end:
        unsaid = [rank for rank, one in outcome.seen.items() if one.ended and rank not in outcome.deaths]
        if all(outcome.seen[rank].status not in RAYS_OWN for rank in unsaid):
            return
        time.sleep(LOOK_S)
        _take_in_ended(group, outcome)


def _with_what_its_agent_says(group: RankGroup, seen: Seen, stacks: dict[int, str], tails: dict[int, str]) -> Seen:
    """Adds what the agent of its node knows of a rank that has ended or says nothing."""
    rank, process, files = seen.rank, group.members[seen.rank].process, _log_files(group, seen.rank)
    if seen.death is not None or (seen.process is not None and seen.process.ended):
        log = group.ask_agent(rank, "log_tail", files, LOG_LINES, default="<its log cannot be read>")
        tails[rank] = "\n".join(log.splitlines()[-SHOWN_LINES:])
        return replace(seen, log=log, oom_kills=group.ask_agent(rank, "out_of_memory_kills", default=0))
    if seen.process is not None or seen.failure is not None or seen.arrival is not None or seen.state is not None:
        return seen
    if process is None:
        return replace(seen, started=False)
    states = group.ask_agent(rank, "process_states", {process.pid: process.born})
    if not states:
        tails[rank] = group.ask_agent(rank, "log_tail", files, default="")
        return replace(seen, letter=None if states is None else "")
    stacks[rank] = group.ask_agent(rank, "native_stacks", process.pid, process.born, files, default="")
    return replace(seen, letter=states[process.pid])


def _log_files(group: RankGroup, rank: int) -> tuple[str, ...]:
    process = group.members[rank].process
    return process.log_files if process else ()
