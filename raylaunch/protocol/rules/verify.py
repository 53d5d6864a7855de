"""Rules of VERIFY: graphs compute what the model computes, on every rank, and no new one appears."""

from __future__ import annotations

from collections.abc import Sequence

from raylaunch.protocol.facts import (
    ReadyFacts,
    VerifyFacts,
    WarmupFacts,
)
from raylaunch.protocol.phases import Arrival, Gate, LaunchPlan, Step, Violation
from raylaunch.protocol.rules.common import History, facts_of, named_shape, odd_one


def replay_equals_eager(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F12: the graphs compute what the model computes, on every rank and at every shape."""
    facts = facts_of(arrivals, VerifyFacts)
    for name in sorted(set().union(*(f.shapes for f in facts.values()))):
        verdicts = {rank: f.shapes[name] for rank, f in facts.items() if name in f.shapes}
        wrong = [rank for rank, one in verdicts.items() if not one.max_error <= one.tolerance]  # so that NaN is wrong
        if wrong:
            # What one rank reduces wrongly reaches all others: it is named only where it stands alone.
            one = verdicts[wrong[0]]
            summary = f"replay differs from eager at {name} by {one.max_error:.3g}, allowed is {one.tolerance:.3g}"
            states = {rank: f"differs by {one.max_error:.3g}" for rank, one in verdicts.items()}
            return Violation("F12", summary, named_shape(step, name), wrong[0] if len(wrong) == 1 else None, states)
    for name in sorted(set().union(*(f.shapes for f in facts.values()))):
        digests = {rank: f.shapes[name].digest if name in f.shapes else "absent" for rank, f in facts.items()}
        odd = odd_one(digests)
        if odd is not None:
            states = {rank: f"digest {digest}" for rank, digest in digests.items()}
            return Violation("F12", f"ranks computed different outputs at {name}", named_shape(step, name), odd, states)
    return None


def every_shape_verified(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F20: every captured shape that is due before READY was replayed on every rank."""
    wanted = {f"{name} {shape}" for name, shape in plan.shapes if plan.verified_first(name, shape)}
    for rank, mine in facts_of(arrivals, VerifyFacts).items():
        absent = sorted(wanted - set(mine.shapes))
        if absent:
            return Violation("F20", f"rank {rank} did not replay {absent[0]}", named_shape(step, absent[0]), rank)
    return None


def every_piece_replayed(
    plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], history: History
) -> Violation | None:
    """F20: at every shape, each piece replayed a graph or is listed as eager with the reason."""
    warmed = facts_of(history.get(Step(Gate.WARMED), ()), WarmupFacts)
    for rank, mine in facts_of(arrivals, VerifyFacts).items():
        for name, verdict in mine.shapes.items():
            split = rank in warmed and plan.rounds
            whole = split and name.partition(" ")[0] in warmed[rank].whole_rounds
            pieces = (1 if whole else warmed[rank].pieces) if split else 0
            if verdict.graphs + len(verdict.eager) != pieces:
                summary = f"rank {rank} replayed {verdict.graphs} graphs of {pieces} pieces at {name}"
                return Violation("F20", summary, named_shape(step, name), rank)
    return None


def same_request(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F12: every rank that reports tokens of the real request reports the same ones."""
    tokens = {rank: f.request_tokens for rank, f in facts_of(arrivals, VerifyFacts).items() if f.request_tokens}
    odd = odd_one(tokens)
    if odd is None:
        return None
    return Violation(
        "F12",
        "ranks answered one request differently",
        step,
        odd,
        {r: f"tokens {t}" for r, t in tokens.items()},
    )


def no_graph_after_register(
    plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], history: History
) -> Violation | None:
    """F20: the real request of VERIFY captured nothing."""
    before = facts_of(history.get(Step(Gate.VERIFIED), ()), VerifyFacts)
    for rank, mine in facts_of(arrivals, ReadyFacts).items():
        if rank in before and mine.graphs != before[rank].graphs:
            summary = f"rank {rank} held {before[rank].graphs} graphs after REGISTER and {mine.graphs} now"
            return Violation("F20", summary, step, rank)
    return None
