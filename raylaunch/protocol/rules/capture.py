"""Rules of CAPTURE and REGISTER: nothing is replayed, ranks recorded the same inputs, all of them are registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from raylaunch.protocol.facts import (
    CaptureFacts,
    IterationFacts,
    RegisterFacts,
    ShapeInputs,
)
from raylaunch.protocol.phases import Arrival, LaunchPlan, Step, Violation
from raylaunch.protocol.rules.common import History, facts_of, human_bytes, odd_one


def no_replay_yet(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F01: nothing is replayed before REGISTER has ended."""
    for arrival in arrivals:
        replays = getattr(arrival.facts, "replays", 0)
        if replays:
            summary = f"rank {arrival.rank} replayed {replays} graphs before their all-reduce inputs were registered"
            return Violation("F01", summary, step, arrival.rank)
    return None


def all_reduces_recorded(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F02: every all-reduce that a graph contains was recorded by the communicator."""
    for rank, mine in facts_of(arrivals, CaptureFacts).items():
        for shape, inside in sorted(mine.in_graphs.items(), reverse=True):
            recorded = mine.recorded[shape].count if shape in mine.recorded else 0
            if recorded != inside:
                summary = (
                    f"rank {rank} captured {inside} all-reduces but recorded {recorded} inputs: some were captured "
                    "outside the custom all-reduce's capture context"
                )
                return Violation("F02", summary, Step(step.gate, step.round, shape), rank)
    return None


def same_inputs(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F03: ranks recorded the same inputs, in number, size and order, for every shape."""
    recorded: dict[int, Mapping[int, ShapeInputs]] = {}
    for arrival in arrivals:
        if not isinstance(arrival.facts, IterationFacts | CaptureFacts):
            raise TypeError(f"rank {arrival.rank} at {arrival.step}: got {arrival.facts!r}")
        recorded[arrival.rank] = arrival.facts.recorded
    for shape in sorted(set().union(*recorded.values()), reverse=True):
        of_shape = {rank: shapes.get(shape, ShapeInputs(0, 0, "")) for rank, shapes in recorded.items()}
        odd = odd_one(of_shape)
        if odd is not None:
            states = {rank: f"{one.count} inputs, {human_bytes(one.nbytes)}" for rank, one in of_shape.items()}
            states[odd] += first_difference(arrivals, shape, odd)
            found = Step(step.gate, step.round, shape)  # not ``step.iteration``: that one is still to come
            return Violation("F03", "ranks recorded different all-reduce inputs", found, odd, states)
    return None


def first_difference(arrivals: Sequence[Arrival], shape: int, odd: int) -> str:
    """Where rank ``odd``'s inputs of a shape first differ from another rank's, if the facts carry the sizes."""
    sizes = {a.rank: a.facts.sizes.get(shape, ()) for a in arrivals if isinstance(a.facts, CaptureFacts)}
    mine = sizes.get(odd)
    theirs = next((other for rank, other in sizes.items() if other != mine), None)
    if mine is None or theirs is None:
        return ""
    for index, (here, there) in enumerate(zip_longest(mine, theirs)):
        if here != there:
            said = [human_bytes(size) if size is not None else "absent" for size in (here, there)]
            if said[0] == said[1]:  # which differ by less than a unit's tenth
                said = [f"{here} B", f"{there} B"]
            return f", first difference: input {index} ({said[0]} here, {said[1]} there)"
    return ""


def every_piece_holds_a_graph(
    plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History
) -> Violation | None:
    """F20: no piece spent all of its iterations warming; it would capture itself at the first live request."""
    for rank, mine in facts_of(arrivals, CaptureFacts).items():
        for shape, pieces in sorted(mine.missing.items(), reverse=True):
            if pieces:
                summary = (
                    f"rank {rank} has no graph for {len(pieces)} pieces after the last iteration "
                    f"(piece {', '.join(map(str, pieces[:8]))}): they were recompiled or skipped while capturing"
                )
                return Violation("F20", summary, Step(step.gate, step.round, shape), rank)
    return None


def all_registered(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F01 and F03: nothing is pending, and every rank registered the same number of inputs."""
    facts = facts_of(arrivals, RegisterFacts)
    for rank, mine in facts.items():
        if mine.pending:
            return Violation(
                "F01",
                f"rank {rank} has {mine.pending} all-reduce inputs without peers' addresses",
                step,
                rank,
            )
    odd = odd_one({rank: f.registered for rank, f in facts.items()})
    if odd is None:
        return None
    states = {rank: f"{f.registered} inputs registered" for rank, f in facts.items()}
    return Violation("F03", "ranks registered different numbers of all-reduce inputs", step, odd, states)
