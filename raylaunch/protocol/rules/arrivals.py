"""Rules of every gate: who must be there, and with which facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from raylaunch.protocol.facts import (
    CaptureFacts,
    CommunicatorFacts,
    Identity,
    IterationFacts,
    LoadFacts,
    ReadyFacts,
    RegisterFacts,
    VerifyFacts,
    WarmupFacts,
)
from raylaunch.protocol.phases import Arrival, Gate, LaunchPlan, Step, Violation
from raylaunch.protocol.rules.common import History


def everyone_is_here(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """One arrival of every rank, each at the gate that is due. An iteration too many is F01."""
    ranks = Counter(arrival.rank for arrival in arrivals)
    if set(ranks) != set(range(plan.world_size)) or max(ranks.values(), default=0) > 1:
        return Violation(
            None,
            f"expected one arrival of each of {plan.world_size} ranks, got {sorted(ranks.elements())}",
            step,
        )
    for arrival in sorted(arrivals, key=lambda arrival: arrival.rank):
        here = arrival.step
        if here == step:
            continue
        states = {a.rank: f"at {a.step}" for a in arrivals}
        allowed = plan.round(here.round)
        if here.gate is Gate.ITERATION and allowed and (here.iteration or 0) > allowed.iterations:
            summary = (
                f"iteration {here.iteration} refused: a shape gets exactly {allowed.iterations} iterations; one more "
                "would replay its graphs before their all-reduce inputs are registered with the peers"
            )
            return Violation("F01", summary, here, arrival.rank, states)
        return Violation(None, f"rank {arrival.rank} is at {here} while {step} was due", here, arrival.rank, states)
    return None


def facts_belong_here(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """Each rank sent the facts of this gate; other facts are a defect of the engine."""
    kind = FACTS.get(step.gate)
    for arrival in sorted(arrivals, key=lambda arrival: arrival.rank):
        if kind is not None and not isinstance(arrival.facts, kind):
            found = type(arrival.facts).__name__
            summary = f"rank {arrival.rank} sent {found} where {kind.__name__} was due: a defect of the engine"
            return Violation(None, summary, step, arrival.rank)
    return None


FACTS: Mapping[Gate, type] = {
    Gate.MEET: Identity,
    Gate.CONNECTED: CommunicatorFacts,
    Gate.LOADED: LoadFacts,
    Gate.WARMED: WarmupFacts,
    Gate.ITERATION: IterationFacts,
    Gate.CAPTURED: CaptureFacts,
    Gate.REGISTERED: RegisterFacts,
    Gate.VERIFIED: VerifyFacts,
    Gate.READY: ReadyFacts,
    Gate.LATER: VerifyFacts,
}
