"""The rules of a launch: what must hold before ranks are released from a gate, each tied to its fault number.

A rule is a function of plain data that returns the violation it found, or None. ``RULES`` says at which gates it
is asked; a new rule is one function and one row there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from raylaunch.protocol.facts import (
    CaptureFacts,
    CommunicatorFacts,
    Identity,
    IterationFacts,
    LoadFacts,
    ReadyFacts,
    RegisterFacts,
    ShapeInputs,
    VerifyFacts,
    WarmupFacts,
)
from raylaunch.protocol.phases import Arrival, Gate, LaunchPlan, Step, Violation

History = Mapping[Step, Sequence[Arrival]]
Rule = Callable[[LaunchPlan, Step, Sequence[Arrival], History], Violation | None]
F = TypeVar("F")


def check(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], history: History) -> Violation | None:
    """The first violation at ``step``, or None if all ranks may be released."""
    violation = everyone_is_here(plan, step, arrivals, history) or facts_belong_here(plan, step, arrivals, history)
    if violation is not None:
        return violation
    ordered = sorted(arrivals, key=lambda arrival: arrival.rank)
    for rule in RULES[step.gate]:
        violation = rule(plan, step, ordered, history)
        if violation is not None:
            return violation
    return None


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


def facts_of(arrivals: Sequence[Arrival], kind: type[F]) -> dict[int, F]:
    """Facts by rank. Raises ``TypeError`` if a rank sent facts of another kind: a defect of the engine."""
    facts: dict[int, F] = {}
    for arrival in arrivals:
        if not isinstance(arrival.facts, kind):
            raise TypeError(f"rank {arrival.rank} at {arrival.step}: expected {kind.__name__}, got {arrival.facts!r}")
        facts[arrival.rank] = arrival.facts
    return facts


def odd_one(values: Mapping[int, Hashable]) -> int | None:
    """The first rank whose value is not the most common one (ties go to the lowest rank's), or None if all agree."""
    counts = Counter(values.values())
    if len(counts) < 2:
        return None
    usual = max(counts, key=lambda value: (counts[value], -min(r for r, v in values.items() if v == value)))
    return min(rank for rank, value in values.items() if value != usual)


# ---- CONNECT ----------------------------------------------------------------------------------------------------


def same_fingerprint(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F19: versions, settings and environment are equal on every rank."""
    prints = {rank: facts.fingerprint for rank, facts in facts_of(arrivals, Identity).items()}
    for key in sorted(set().union(*prints.values())):
        values = {rank: one.get(key, "absent") for rank, one in prints.items()}
        odd = odd_one(values)
        if odd is not None:
            usual = values[next(rank for rank in values if values[rank] != values[odd])]
            summary = f"ranks differ in {key}: {values[odd]!r} on rank {odd}, {usual!r} elsewhere"
            return Violation("F19", summary, step, odd, {rank: f"{key} = {value}" for rank, value in values.items()})
    return None


def devices_in_rank_order(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F09: the ordinal of a rank's device is its local rank (which is unique on a node: ``placement.seats``)."""
    facts = facts_of(arrivals, Identity)
    for rank, mine in facts.items():
        name, _sep, ordinal = mine.device.partition(":")
        if name != "cpu" and ordinal != str(mine.local_rank):
            states = {r: f"{f.hostname} local rank {f.local_rank} on {f.device}" for r, f in facts.items()}
            summary = (
                f"rank {rank} is local rank {mine.local_rank} and must use {name}:{mine.local_rank}, not {mine.device}"
            )
            return Violation("F09", summary, step, rank, states)
    return None


def same_communicator(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F18: every rank decided for the same all-reduce."""
    facts = facts_of(arrivals, CommunicatorFacts)
    odd = odd_one({rank: (f.kind, f.max_bytes, f.world_size, f.capacity) for rank, f in facts.items()})
    if odd is None:
        return None
    states = {
        rank: f"{f.kind}, {f.max_bytes} bytes, world size {f.world_size} ({f.reason})" for rank, f in facts.items()
    }
    return Violation("F18", "ranks chose different all-reduces: the fallback must be decided alike", step, odd, states)


# ---- LOAD and WARMUP --------------------------------------------------------------------------------------------


def every_tensor_loaded(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """No missing and no unexpected names, and the same number of tensors on every rank."""
    facts = facts_of(arrivals, LoadFacts)
    for rank, mine in facts.items():
        for what, names in (("missing from", mine.missing), ("unexpected in", mine.unexpected)):
            if names:
                listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                return Violation(None, f"{len(names)} tensors {what} the checkpoint: {listed}", step, rank)
    odd = odd_one({rank: f.tensors for rank, f in facts.items()})
    if odd is None:
        return None
    states = {rank: f"{f.tensors} tensors" for rank, f in facts.items()}
    return Violation(None, "ranks loaded different numbers of tensors", step, odd, states)


def nothing_captured_yet(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F01: WARMUP neither captures nor replays."""
    for rank, mine in facts_of(arrivals, WarmupFacts).items():
        if mine.graphs or mine.replays:
            summary = f"rank {rank} captured {mine.graphs} and replayed {mine.replays} graphs during WARMUP"
            return Violation("F01", summary, step, rank)
    return None


def same_pieces(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F03: every rank split the model alike, so that their graphs will reduce alike."""
    facts = facts_of(arrivals, WarmupFacts)
    odd = odd_one({rank: (f.pieces, tuple(sorted(f.eager_pieces)), f.planned_inputs) for rank, f in facts.items()})
    if odd is None:
        return None
    states = {
        r: f"{f.pieces} pieces, {len(f.eager_pieces)} eager, {f.planned_inputs} inputs planned"
        for r, f in facts.items()
    }
    return Violation("F03", "ranks split the model differently", step, odd, states)


def table_is_large_enough(
    plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], history: History
) -> Violation | None:
    """F17: the inputs that CAPTURE will record fit the communicator's table."""
    planned = facts_of(arrivals, WarmupFacts)
    for rank, mine in facts_of(history.get(Step(Gate.CONNECTED), ()), CommunicatorFacts).items():
        if mine.capacity is not None and planned[rank].planned_inputs > mine.capacity:
            summary = (
                f"{planned[rank].planned_inputs} all-reduce inputs would be registered but {mine.kind} has "
                f"{mine.capacity} rows: capture fewer shapes (capture.prefill_tokens, capture.decode_batch_sizes)"
            )
            return Violation("F17", summary, step, rank)
    return None


# ---- CAPTURE and REGISTER ---------------------------------------------------------------------------------------


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
            found = Step(step.gate, step.round, shape, step.iteration)
            return Violation("F03", "ranks recorded different all-reduce inputs", found, odd, states)
    return None


def first_difference(arrivals: Sequence[Arrival], shape: int, odd: int) -> str:
    """Where rank ``odd``'s inputs of a shape first differ from another rank's, if the facts carry the sizes."""
    sizes = {a.rank: a.facts.sizes.get(shape, ()) for a in arrivals if isinstance(a.facts, CaptureFacts)}
    mine = sizes.get(odd)
    theirs = next((other for rank, other in sizes.items() if other != mine), None)
    if mine is None or theirs is None:
        return ""
    for index in range(max(len(mine), len(theirs))):
        here = human_bytes(mine[index]) if index < len(mine) else "absent"
        there = human_bytes(theirs[index]) if index < len(theirs) else "absent"
        if here != there:
            return f", first difference: input {index} ({here} here, {there} there)"
    return ""


def every_piece_holds_a_graph(
    plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History
) -> Violation | None:
    """F20: no piece spent its two iterations warming; it would capture itself at the first live request."""
    for rank, mine in facts_of(arrivals, CaptureFacts).items():
        for shape, pieces in sorted(mine.missing.items(), reverse=True):
            if pieces:
                summary = (
                    f"rank {rank} has no graph for {len(pieces)} pieces after the last iteration "
                    f"(piece {', '.join(map(str, pieces[:8]))}): they were recompiled or skipped while capturing"
                )
                return Violation("F20", summary, Step(step.gate, step.round, shape), rank)
    return None


def no_address_reused(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F04: what was captured stayed allocated until it is registered."""
    for rank, mine in facts_of(arrivals, CaptureFacts).items():
        if mine.reused:
            return Violation("F04", f"rank {rank}: {mine.reused[0]}", step, rank)
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


# ---- VERIFY -----------------------------------------------------------------------------------------------------


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
    """F20: every captured shape was replayed on every rank."""
    wanted = {f"{one.name} {shape}" for one in plan.rounds for shape in one.shapes}
    for rank, mine in facts_of(arrivals, VerifyFacts).items():
        absent = sorted(wanted - set(mine.shapes))
        if absent:
            return Violation("F20", f"rank {rank} did not replay {absent[0]}", named_shape(step, absent[0]), rank)
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


def named_shape(step: Step, name: str) -> Step:
    """``step`` with the round and shape of a verdict's name such as ``"prefill 128"``; as it is for another name."""
    round_name, _sep, shape = name.partition(" ")
    if round_name not in ("prefill", "decode") or not shape.isdecimal():
        return step
    return Step(step.gate, "decode" if round_name == "decode" else "prefill", int(shape))


def human_bytes(nbytes: int) -> str:
    """``nbytes`` with a binary unit: 512 B, 1.5 KiB, 73.0 MiB."""
    size: Any = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{nbytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{nbytes} B"


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
}

RULES: Mapping[Gate, tuple[Rule, ...]] = {
    Gate.MEET: (same_fingerprint, devices_in_rank_order),
    Gate.ATTACH: (),
    Gate.CONNECTED: (same_communicator,),
    Gate.LOADED: (every_tensor_loaded,),
    Gate.WARMED: (nothing_captured_yet, same_pieces, table_is_large_enough),
    Gate.ITERATION: (no_replay_yet, same_inputs),
    Gate.CAPTURED: (
        no_replay_yet,
        same_inputs,
        all_reduces_recorded,
        every_piece_holds_a_graph,
        no_address_reused,
    ),
    Gate.REGISTERED: (no_replay_yet, all_registered),
    Gate.VERIFIED: (every_shape_verified, replay_equals_eager, same_request),
    Gate.READY: (no_graph_after_register,),
}
