"""A launch in which every rank says the right thing, and ways to say one wrong thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from raylaunch.protocol import (
    Arrival,
    CaptureFacts,
    CommunicatorFacts,
    Facts,
    Gate,
    Identity,
    IterationFacts,
    LaunchPlan,
    LoadFacts,
    Protocol,
    ReadyFacts,
    RegisterFacts,
    RoundPlan,
    ShapeInputs,
    ShapeVerdict,
    Step,
    VerifyFacts,
    WarmupFacts,
)

PREFILL, DECODE = RoundPlan("prefill", (32, 8)), RoundPlan("decode", (4, 2))
PLAN = LaunchPlan(2, (PREFILL, DECODE))
VERDICT = ShapeVerdict(max_error=1e-6, tolerance=1e-5, digest="same", graphs=2, eager={1: "attention"})
MEASURING = replace(PLAN, measures=True)
SIZES = (4096, 4096, 8192)
INPUTS = ShapeInputs(len(SIZES), sum(SIZES), "alike")


def facts(plan: LaunchPlan, step: Step, rank: int) -> Facts:
    """What a healthy rank says at a step."""
    of_round = plan.round(step.round)
    shapes = of_round.shapes if of_round else ()
    captured = [shape for shape in shapes if step.shape is not None and shape > step.shape]
    return {
        Gate.MEET: Identity(
            "node", 100 + rank, f"cuda:{rank}", rank, f"uuid {rank}", {"torch": "2.11", "dtype": "bfloat16"}
        ),
        Gate.ATTACH: None,
        Gate.PROBED: None,
        Gate.MEASURED: None,
        Gate.CONNECTED: CommunicatorFacts("sgl_kernel", "peers can map memory", 8 << 20, plan.world_size, 8192),
        Gate.LOADED: LoadFacts(tensors=40, nbytes=1 << 20, bytes_read=1 << 20),
        Gate.WARMED: WarmupFacts(
            pieces=3,
            eager_pieces={1: "attention"},
            planned_inputs=12,
            kv_tokens=8192,
            kv_bytes=64 << 20,
            rounds=plan.rounds,
        ),
        Gate.ITERATION: IterationFacts(recorded=dict.fromkeys(captured, INPUTS)),
        Gate.CAPTURED: CaptureFacts(
            recorded=dict.fromkeys(shapes, INPUTS),
            sizes=dict.fromkeys(shapes, SIZES),
            in_graphs=dict.fromkeys(shapes, len(SIZES)),
            missing=dict.fromkeys(shapes, ()),
            memory={shape: shape << 20 for shape in shapes},
        ),
        Gate.REGISTERED: RegisterFacts(pending=0, registered=12),
        Gate.VERIFIED: VerifyFacts(
            {f"{one.name} {shape}": VERDICT for one in plan.rounds for shape in one.shapes}, (5, 6), graphs=12
        ),
        Gate.READY: ReadyFacts(graphs=12, memory=1 << 20),
        Gate.LATER: VerifyFacts({f"{step.round} {step.shape}": VERDICT}, graphs=12),
    }[step.gate]


def arrivals(plan: LaunchPlan, step: Step) -> list[Arrival]:
    """Every rank at a step, healthy."""
    return [Arrival(rank, step, facts(plan, step, rank), f"offer {rank}") for rank in range(plan.world_size)]


def at(protocol: Protocol, step: Step) -> Protocol:
    """The protocol, taken through a good launch until ``step`` is due."""
    while protocol.expected() != step:
        protocol.submit(arrivals(protocol.plan, protocol.expected()))
    return protocol


def submit(gate: Gate, change: Callable[[list[Arrival]], list[Arrival]], plan: LaunchPlan = PLAN, nth: int = 0) -> Any:
    """Verdict on changed arrivals at the ``nth`` step of a gate, after a good launch up to there."""
    step = [step for step in plan.steps() if step.gate is gate][nth]
    return at(Protocol(plan), step).submit(change(arrivals(plan, step)))


def say(rank: int, **changes: Any) -> Callable[[list[Arrival]], list[Arrival]]:
    """Changes fields of one rank's facts."""

    def change(ranks: list[Arrival]) -> list[Arrival]:
        new = replace(ranks[rank].facts, **changes)
        return [replace(one, facts=new) if one.rank == rank else one for one in ranks]

    return change


@dataclass(frozen=True)
class Mutation:
    """One wrong thing that one rank may say.

    Attributes:
        gates: where it can be said; empty for everywhere.
        code: fault number it must be refused with.
        change: makes the good arrivals wrong: told the plan and the rank.
        compared: found by comparing ranks: needs two of them, and with two the higher one is named.
        names: whether a rank can be named at all.
    """

    name: str
    gates: tuple[Gate, ...]
    code: str | None
    change: Callable[[list[Arrival], int, LaunchPlan], list[Arrival]]
    compared: bool = False
    names: bool = True


def wrong_facts(
    name: str,
    gate: Gate | tuple[Gate, ...],
    code: str | None,
    change: Callable[[Any], dict[str, Any]] | None = None,
    compared: bool = False,
    **fixed: Any,
) -> Mutation:
    """A mutation of some fields: given, or computed from the facts."""

    def mutate(ranks: list[Arrival], rank: int, plan: LaunchPlan) -> list[Arrival]:
        return say(rank, **fixed, **(change(ranks[rank].facts) if change else {}))(ranks)

    return Mutation(name, gate if isinstance(gate, tuple) else (gate,), code, mutate, compared)


def wrong_step(name: str, code: str | None, step: Callable[[Step, LaunchPlan], Step]) -> Mutation:
    def mutate(ranks: list[Arrival], rank: int, plan: LaunchPlan) -> list[Arrival]:
        new = step(ranks[0].step, plan)
        return [replace(one, step=new) if one.rank == rank else one for one in ranks]

    return Mutation(name, (), code, mutate)


def first(mapping: Any, value: Any) -> dict[Any, Any]:
    """A mapping with its first value replaced."""
    return {**mapping, next(iter(mapping)): value}


def verdict(**changes: Any) -> Callable[[VerifyFacts], dict[str, Any]]:
    return lambda f: {"shapes": first(f.shapes, replace(next(iter(f.shapes.values())), **changes))}


def on_the_gpu_of_another(ranks: list[Arrival], rank: int, plan: LaunchPlan) -> list[Arrival]:
    return say(rank, gpu=ranks[rank - 1].facts.gpu)(ranks)


def third_iteration(step: Step, plan: LaunchPlan) -> Step:
    one = plan.rounds[0]
    return Step(Gate.ITERATION, one.name, max(one.shapes), one.iterations + 1)


def another_gate(step: Step, plan: LaunchPlan) -> Step:
    return Step(Gate.READY if step.gate is not Gate.READY else Gate.MEET)


G = Gate
MUTATIONS: tuple[Mutation, ...] = (
    Mutation("rank missing", (), None, lambda ranks, r, _: ranks[:r] + ranks[r + 1 :], names=False),
    Mutation("rank twice", (), None, lambda ranks, r, _: [*ranks, ranks[r]], names=False),
    Mutation("unknown rank", (), None, lambda ranks, r, p: [*ranks, replace(ranks[r], rank=p.world_size)], names=False),
    wrong_step("another gate", None, another_gate),
    wrong_step("third iteration", "F01", third_iteration),
    Mutation(
        "facts of another gate",
        tuple(gate for gate in Gate if gate is not Gate.ATTACH),
        None,
        lambda ranks, r, _: [replace(one, facts=None) if one.rank == r else one for one in ranks],
    ),
    wrong_facts("fingerprint", G.MEET, "F19", compared=True, fingerprint={"torch": "2.12", "dtype": "bfloat16"}),
    wrong_facts("fingerprint without a key", G.MEET, "F19", compared=True, fingerprint={"torch": "2.11"}),
    Mutation("GPU of another rank", (G.MEET,), "F09", on_the_gpu_of_another, compared=True, names=False),
    wrong_facts("communicator", G.CONNECTED, "F18", compared=True, kind="nccl"),
    wrong_facts("communicator's limit", G.CONNECTED, "F18", compared=True, max_bytes=4096),
    wrong_facts("communicator's table", G.CONNECTED, "F18", compared=True, capacity=1),
    wrong_facts("number of tensors", G.LOADED, None, compared=True, tensors=39),
    wrong_facts("captured in warm-up", G.WARMED, "F01", graphs=1),
    wrong_facts("replayed in warm-up", G.WARMED, "F01", replays=1),
    wrong_facts("rounds", G.WARMED, "F03", compared=True, rounds=(RoundPlan("decode", (2,), 3),)),
    wrong_facts("pieces", G.WARMED, "F03", compared=True, pieces=4),
    wrong_facts("eager pieces", G.WARMED, "F03", compared=True, eager_pieces={}),
    wrong_facts("planned inputs", G.WARMED, "F03", compared=True, planned_inputs=13),
    wrong_facts("size of the cache", G.WARMED, None, compared=True, kv_tokens=4096),
    wrong_facts("replay before register", (G.ITERATION, G.CAPTURED, G.REGISTERED), "F01", replays=1),
    wrong_facts(
        "recorded in an iteration",
        G.ITERATION,
        "F03",
        lambda f: {"recorded": {**f.recorded, 9999: INPUTS}},
        compared=True,
    ),
    wrong_facts(
        "one input fewer",
        G.CAPTURED,
        "F03",
        lambda f: {"recorded": first(f.recorded, replace(INPUTS, count=2)), "sizes": first(f.sizes, SIZES[:2])},
        compared=True,
    ),
    wrong_facts(
        "inputs of other sizes",
        G.CAPTURED,
        "F03",
        lambda f: {"recorded": first(f.recorded, replace(INPUTS, nbytes=1))},
        compared=True,
    ),
    wrong_facts(
        "inputs in another order",
        G.CAPTURED,
        "F03",
        lambda f: {"recorded": first(f.recorded, replace(INPUTS, digest="other"))},
        compared=True,
    ),
    wrong_facts("shape not recorded", G.CAPTURED, "F03", compared=True, recorded={}),
    wrong_facts("not recorded", G.CAPTURED, "F02", lambda f: {"in_graphs": first(f.in_graphs, 4)}),
    wrong_facts("piece without graph", G.CAPTURED, "F20", lambda f: {"missing": first(f.missing, (2,))}),
    wrong_facts("pending after register", G.REGISTERED, "F01", pending=1),
    wrong_facts("registered", G.REGISTERED, "F03", compared=True, registered=11),
    wrong_facts("replay differs", G.VERIFIED, "F12", verdict(max_error=1e-4)),
    wrong_facts("replay is NaN", G.VERIFIED, "F12", verdict(max_error=float("nan"))),
    wrong_facts("digest", G.VERIFIED, "F12", verdict(digest="other"), compared=True),
    wrong_facts("shape not verified", G.VERIFIED, "F20", lambda f: {"shapes": dict(list(f.shapes.items())[1:])}),
    wrong_facts("piece not replayed", G.VERIFIED, "F20", verdict(graphs=1)),
    wrong_facts("tokens of the request", G.VERIFIED, "F12", compared=True, request_tokens=(5, 7)),
    wrong_facts("graph after verify", G.READY, "F20", graphs=13),
)


@st.composite
def plans(draw: st.DrawFn, least_ranks: int = 1) -> LaunchPlan:
    """Any plan that captures something."""
    rounds = []
    for name in draw(st.sampled_from([("prefill",), ("decode",), ("prefill", "decode")])):
        shapes = draw(st.lists(st.integers(2, 2048), min_size=1, max_size=3, unique=True))
        rounds.append(RoundPlan(name, tuple(shapes), draw(st.integers(1, 3))))
    granularity = draw(st.sampled_from(["phase", "shape", "iteration"]))
    return LaunchPlan(draw(st.integers(least_ranks, 5)), tuple(rounds), granularity)
