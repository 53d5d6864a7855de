"""Rules of CONNECT, LOAD and WARMUP: ranks are alike, the weights are whole, nothing is captured yet."""

from __future__ import annotations

from collections.abc import Sequence

from raylaunch.protocol.facts import (
    CommunicatorFacts,
    Identity,
    LoadFacts,
    WarmupFacts,
)
from raylaunch.protocol.phases import Arrival, Gate, LaunchPlan, Step, Violation
from raylaunch.protocol.rules.common import History, facts_of, odd_one


def same_fingerprint(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F19: versions, settings and environment are equal on every rank."""
    facts = facts_of(arrivals, Identity)
    prints = {rank: one.fingerprint for rank, one in facts.items()}
    hosts = {rank: one.hostname for rank, one in facts.items()}
    for key in sorted(set().union(*prints.values())):
        values = {rank: one.get(key, "absent") for rank, one in prints.items()}
        odd = odd_one(values)
        if odd is not None:
            usual = values[next(rank for rank in values if values[rank] != values[odd])]
            where = f"rank {odd}{f' (node {hosts[odd]})' if len(set(hosts.values())) > 1 else ''}"
            summary = f"ranks differ in {key}: {values[odd]!r} on {where}, {usual!r} elsewhere"
            return Violation("F19", summary, step, odd, {rank: f"{key} = {value}" for rank, value in values.items()})
    return None


def a_gpu_each(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F09: ranks that were given different GPUs are on different ones, whatever numbers launcher and CUDA use."""
    facts = facts_of(arrivals, Identity)
    first: dict[str, int] = {}
    for rank, mine in facts.items():
        other = first.setdefault(mine.gpu, rank) if mine.gpu else rank
        if mine.device != facts[other].device:
            states = {r: f"{f.hostname} local rank {f.local_rank} on {f.device}, {f.gpu}" for r, f in facts.items()}
            summary = (
                f"ranks {other} and {rank} were given {facts[other].device} and {mine.device} and are on one GPU: "
                "CUDA did not take the CUDA_VISIBLE_DEVICES that they were started with"
            )
            return Violation("F09", summary, step, None, states)  # which of the two is wrong cannot be seen here
    return None


def same_communicator(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F18: every rank decided for the same all-reduce."""
    facts = facts_of(arrivals, CommunicatorFacts)
    odd = odd_one({rank: (f.kind, f.max_bytes, f.world_size, f.capacity, f.routes) for rank, f in facts.items()})
    if odd is None:
        return None
    states = {
        rank: f"{f.kind}, {f.max_bytes} bytes, world size {f.world_size} ({f.reason})" for rank, f in facts.items()
    }
    return Violation("F18", "ranks chose different all-reduces: the fallback must be decided alike", step, odd, states)


def same_tensors(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """Every rank loaded as many tensors as the others; one that lacks names has failed by itself, in LOAD."""
    facts = facts_of(arrivals, LoadFacts)
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
    odd = odd_one(
        {rank: (f.pieces, tuple(sorted(f.eager_pieces)), f.whole_rounds, f.planned_inputs) for rank, f in facts.items()}
    )
    if odd is None:
        return None
    states = {
        r: f"{f.pieces} pieces, {len(f.eager_pieces)} eager, {f.planned_inputs} inputs planned"
        for r, f in facts.items()
    }
    return Violation("F03", "ranks split the model differently", step, odd, states)


def same_cache(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """Every rank's KV cache holds the same tokens: rank 0 hands out rows of all of them."""
    tokens = {rank: f.kv_tokens for rank, f in facts_of(arrivals, WarmupFacts).items()}
    odd = odd_one(tokens)
    if odd is None:
        return None
    states = {rank: f"{count} tokens" for rank, count in tokens.items()}
    return Violation(None, "ranks made KV caches of different sizes", step, odd, states)


def same_rounds(plan: LaunchPlan, step: Step, arrivals: Sequence[Arrival], _: History) -> Violation | None:
    """F03: where the ranks decide what is captured, they decided alike: shapes, and iterations of each."""
    facts = facts_of(arrivals, WarmupFacts)
    odd = odd_one({rank: f.rounds for rank, f in facts.items()})
    if odd is None:
        return None
    states = {
        rank: "; ".join(f"{one.name} {list(one.shapes)} x {one.iterations}" for one in f.rounds) or "nothing"
        for rank, f in facts.items()
    }
    return Violation("F03", "ranks would capture different shapes", step, odd, states)


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
