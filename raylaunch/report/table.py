"""A launch for people: a table of its phases and ranks, with a sentence about what each phase brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raylaunch.protocol import (
    NICENESS,
    CommunicatorFacts,
    Gate,
    Identity,
    LoadFacts,
    MeasuredSize,
    Phase,
    RegisterFacts,
    RoundPlan,
    Route,
    ShapeVerdict,
    VerifyFacts,
    WarmupFacts,
)
from raylaunch.protocol.rules.common import count, human_bytes

if TYPE_CHECKING:
    from raylaunch.report.launch_report import LaunchReport


def phase_table(report: LaunchReport) -> Any:
    """The table, for a rich console."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    title = f"{report.name}: ready after {report.seconds:.1f} s" if report.ready else f"{report.name}: not ready"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase")
    table.add_column("s", justify="right")
    shown = report.places[:8]
    for place in shown:
        table.add_column(f"rank {place.rank}", justify="right")
    table.add_column("what", overflow="fold")
    for phase in Phase:
        if phase is Phase.SERVE:
            continue
        busy = [f"{report.busy(place.rank, phase):.2f}" if phase is not Phase.PLACE else "" for place in shown]
        table.add_row(phase.name, f"{report.elapsed(phase):.2f}", *busy, escape(described(report, phase)))
    if report.sampling:
        nothing = [""] * (1 + len(shown))
        table.add_row(Phase.SERVE.name, *nothing, escape(f"unless a request says otherwise: {report.sampling}"))
    return table


def described(report: LaunchReport, phase: Phase) -> str:
    """What a phase brought, in a sentence: rank 0's numbers where ranks must agree."""
    by_gate = {record.step.gate: record.arrivals[0].facts for record in report.steps if record.arrivals}
    if phase is Phase.PLACE:
        nodes = len({place.node for place in report.places})
        adopted = sum(place.adopted for place in report.places)
        stood_by = f", {adopted} of which stood by" if adopted else ""
        where = f"{count(len(report.places), 'rank')} on {count(nodes, 'node')}{stood_by}"
        return f"{where}{_describe_interfaces(report)}{_describe_niceness(report)}"
    if phase is Phase.CONNECT and isinstance(facts := by_gate.get(Gate.CONNECTED), CommunicatorFacts):
        return _describe_all_reduce(facts)
    if phase is Phase.LOAD and isinstance(facts := by_gate.get(Gate.LOADED), LoadFacts):
        sizes = f"{human_bytes(facts.nbytes)} held, {human_bytes(facts.bytes_read)} read"
        dtype = f" of {facts.dtype}" if facts.dtype else ""
        return f"{facts.tensors} tensors per rank{dtype}, {sizes}{_describe_unused(facts)}"
    if phase is Phase.WARMUP and isinstance(facts := by_gate.get(Gate.WARMED), WarmupFacts):
        return _describe_warmup(facts) + (f"; {report.kernels}" if report.kernels else "")
    if phase is Phase.CAPTURE:
        return _describe_capture(report)
    if phase is Phase.REGISTER:
        return _describe_register(report)
    if phase is Phase.VERIFY and isinstance(facts := by_gate.get(Gate.VERIFIED), VerifyFacts):
        left = len(report.unverified)
        later = f"; {count(left, 'shape')} left for when no request runs" if left else ""
        return _describe_verify(report.verdicts, len(facts.request_tokens)) + later
    return ""


def _describe_niceness(report: LaunchReport) -> str:
    said = [one.facts for _, arrivals in report.facts(Gate.MEET) for one in arrivals]
    nicest = max((one.niceness for one in said if isinstance(one, Identity)), default=0)
    return f"; at nice {nicest}, behind other processes: start Ray with {NICENESS}=0" if nicest > 0 else ""


def _describe_capture(report: LaunchReport) -> str:
    shapes: dict[str, set[int]] = {}
    barriers = 0
    for step, _ in report.facts(Gate.ITERATION):
        barriers += 1
        shapes.setdefault(step.round or "", set()).add(step.shape or 0)
    for step, arrivals in report.facts(Gate.CAPTURED):
        shapes.setdefault(step.round or "", set()).update(getattr(arrivals[0].facts, "recorded", {}))
    warmed = [arrivals[0].facts for _, arrivals in report.facts(Gate.WARMED) if arrivals]
    planned = {one.name: one.iterations for facts in warmed for one in getattr(facts, "rounds", ())}
    text = "; ".join(f"{name} {', '.join(map(str, sorted(sizes)))}" for name, sizes in shapes.items())
    iterations = " and ".join({str(planned.get(name, RoundPlan.iterations)): None for name in shapes})
    memory = sum(of_ranks[0] for of_ranks in report.capture_memory.values())
    size = f"; {human_bytes(memory)} per rank" if memory else ""
    return f"{text}; {iterations} iterations; {barriers} barriers{size}" if text else "nothing captured"


def _describe_register(report: LaunchReport) -> str:
    counts = [
        a.facts.registered
        for _, arrivals in report.facts(Gate.REGISTERED)
        for a in arrivals
        if isinstance(a.facts, RegisterFacts)
    ]
    # What was registered to be measured is counted by the ranks, and no part of the engine's graphs.
    measured = (report.all_reduce or {}).get("registered", 0)
    return f"{max(counts) - measured} all-reduce inputs per rank, none pending" if counts else "nothing to register"


def _describe_interfaces(report: LaunchReport) -> str:
    """Which the ranks of several nodes reach one another over."""
    for _, arrivals in report.facts(Gate.MEET):
        named = {one.facts.interface: None for one in arrivals if isinstance(one.facts, Identity)}
        if any(named):
            return f", over {', '.join(named)}"
    return ""


def _describe_unused(facts: LoadFacts) -> str:
    if not facts.unused:
        return ""
    more = facts.unused - len(facts.unused_names)
    names = ", ".join(facts.unused_names) + (f" and {more} more" if more else "")
    return f"; the model has no place for {count(facts.unused, 'tensor')} of the checkpoint: {names}"


def _describe_all_reduce(facts: CommunicatorFacts) -> str:
    limit = f", messages up to {human_bytes(facts.max_bytes)}" if facts.max_bytes and len(facts.routes) < 2 else ""
    what = describe_routes(facts.routes) or facts.kind
    measured = "".join(f"\n  {_measured(one)}" for one in facts.measured)
    return f"all-reduce: {what}{limit} ({facts.reason}){measured}"


def describe_routes(routes: Sequence[Route]) -> str:
    """Such as ``sgl_kernel up to 8.0 MiB, nccl beyond``."""
    if len(routes) == 1:
        return routes[0].kind
    limits = ["beyond" if route.up_to is None else f"up to {human_bytes(route.up_to)}" for route in routes]
    return ", ".join(f"{route.kind} {limit}" for route, limit in zip(routes, limits, strict=True))


def _measured(size: MeasuredSize) -> str:
    ordered = sorted(size.microseconds.items(), key=lambda one: one[0] != size.chosen)
    return f"{human_bytes(size.nbytes)}: " + ", ".join(f"{kind} {us:.1f} us" for kind, us in ordered)


def _describe_warmup(facts: WarmupFacts) -> str:
    """What will hold graphs: pieces of the model, or whole passes of it; and how large the KV cache is."""
    whole = " and ".join(facts.whole_rounds)
    cache = f"; KV cache of {facts.kv_tokens:,} tokens" if facts.kv_tokens else ""
    cache += f", {human_bytes(facts.kv_bytes)}" if facts.kv_bytes else ""
    if facts.pieces:
        eager = f", {len(facts.eager_pieces)} of them eager" if facts.eager_pieces else ""
        rest = f"; {whole} as one graph each" if whole else ""
        return f"{count(facts.pieces, 'piece')}{eager}, {count(facts.compiles, 'compile')}{rest}{cache}"
    return (f"{whole} as one graph each" if whole else "no graphs: eager") + cache


def _describe_verify(verdicts: Mapping[str, ShapeVerdict], tokens: int) -> str:
    if not verdicts:
        return "one request answered" + (f" with {tokens} tokens" if tokens else "")
    worst = max(verdict.max_error for verdict in verdicts.values())
    same = "bitwise" if worst == 0 else f"within {worst:.2g}"
    graphs = sum(verdict.graphs for verdict in verdicts.values())
    return f"{count(len(verdicts), 'shape')}, {count(graphs, 'graph')}: replay equals eager ({same}), ranks agree"
