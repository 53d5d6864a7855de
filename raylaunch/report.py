"""The launch report: what each rank did in each phase, how long it took, and what it said of itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from raylaunch.protocol import (
    NICENESS,
    Arrival,
    CaptureFacts,
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
    Step,
    VerifyFacts,
    WarmupFacts,
)
from raylaunch.protocol.rules.common import count, human_bytes


@dataclass(frozen=True)
class StepRecord:
    """One barrier: who arrived when, and when all were released. Seconds since the epoch."""

    step: Step
    arrivals: tuple[Arrival, ...]
    released: float


@dataclass(frozen=True)
class Span:
    """Something the driver did by itself, such as starting actors. Seconds since the epoch."""

    name: str
    start: float
    end: float
    phase: Phase = Phase.PLACE


@contextmanager
def timed(spans: list[Span], name: str) -> Iterator[None]:
    """Adds the time that the block takes."""
    start = time.time()
    try:
        yield
    finally:
        spans.append(Span(name, start, time.time()))


@dataclass(frozen=True)
class Due:
    """What a launch works towards, as whoever takes it there has said before.

    Attributes:
        phase: that it belongs to.
        what: in words.
        since: when it began, seconds since the epoch.
        done: steps that all ranks have taken.
        of: steps in all; None outside of them, and as long as only the ranks' engine knows.
    """

    phase: Phase
    what: str
    since: float
    done: int = 0
    of: int | None = None


@dataclass(frozen=True)
class RankPlace:
    """Where a rank runs, in a process that is there ``since`` (seconds since the epoch); ``adopted``: it stood by."""

    rank: int
    node: str
    pid: int
    device: str = ""
    adopted: bool = False
    since: float = 0.0


@dataclass(frozen=True)
class Standing:
    """How many ranks stand by, and the bytes that their processes have in memory together, what they share counted for
    each."""

    ranks: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class KeptWeights:
    """On how many nodes weights are kept in memory, how many bytes together, and whether the kernel may take none."""

    nodes: int = 0
    nbytes: int = 0
    locked: bool = True


@dataclass
class LaunchReport:
    """Everything a launch has said. Grows while the launch goes on; read it at any time.

    Attributes:
        name: of the group, as configured.
        group: the unique name of this launch, such as ``raylaunch-4f2a1c``; "" before its ranks are placed.
        started: when the launch began, seconds since the epoch.
        ready: when requests could be sent, 0.0 before.
        attempts: launches it took, restarts included.
        sampling: how tokens are chosen where a request says nothing of it; "" where nobody said.
        due: what it works towards, or did last.
        fetching: how much of a model on the Hub has arrived, while it does; else "".
        standby: what waits beside the group by now.
        kernels: what was done so that none is built twice; "" for nothing.
        shapes: all that are captured, such as ``prefill 128``, once the launch is through.
        kept: weights that are kept in memory by now.
        command: when the command was started whose launch it is; 0.0 for a program's.
        beside: what the frontend has done meanwhile.
    """

    name: str
    started: float = 0.0
    ready: float = 0.0
    attempts: int = 1
    sampling: str = ""
    fetching: str = ""
    group: str = ""
    places: list[RankPlace] = field(default_factory=list)
    driver: list[Span] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    due: Due | None = None
    standby: Standing = Standing()
    kernels: str = ""
    shapes: tuple[str, ...] = ()
    kept: KeptWeights = KeptWeights()
    command: float = 0.0
    beside: list[Span] = field(default_factory=list)

    # ---- what happened

    def busy(self, rank: int, phase: Phase) -> float:
        """Seconds that a rank worked towards the gates of a phase, waiting not counted."""
        return sum(
            a.arrived - a.started for r in self.steps for a in r.arrivals if a.rank == rank and r.step.phase is phase
        )

    def elapsed(self, phase: Phase) -> float:
        """Seconds of a phase as the driver saw them: of each of its barriers, since the one before."""
        own = sum(span.end - span.start for span in self.driver if span.phase is phase)
        return own + sum(self._since_previous(i) for i, record in enumerate(self.steps) if record.step.phase is phase)

    def _since_previous(self, index: int) -> float:
        placed = max((span.end for span in self.driver if span.phase is Phase.PLACE), default=self.started)
        previous = self.steps[index - 1].released if index else placed
        return self.steps[index].released - previous

    def step_costs(self) -> list[float]:
        """Seconds from each barrier's last arrival to its release, by the driver's clock and the ranks'."""
        return [record.released - max(a.arrived for a in record.arrivals) for record in self.steps]

    def facts(self, gate: Gate) -> list[tuple[Step, tuple[Arrival, ...]]]:
        """Arrivals at every barrier of a gate."""
        return [(record.step, record.arrivals) for record in self.steps if record.step.gate is gate]

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache of every rank holds; 0 before WARMUP has ended."""
        for _, arrivals in self.facts(Gate.WARMED):
            if isinstance(arrivals[0].facts, WarmupFacts):
                return arrivals[0].facts.kv_tokens
        return 0

    @property
    def capture_memory(self) -> dict[str, list[int]]:
        """Bytes of device memory that the capture of each shape added, rank by rank; keys as ``prefill 128``."""
        memory: dict[str, list[int]] = {}
        for step, arrivals in self.facts(Gate.CAPTURED):
            for arrival in arrivals:
                if isinstance(arrival.facts, CaptureFacts):
                    for shape, nbytes in sorted(arrival.facts.memory.items()):
                        memory.setdefault(f"{step.round} {shape}", []).append(nbytes)
        return memory

    @property
    def verdicts(self) -> dict[str, ShapeVerdict]:
        """Rank 0's of each shape that is verified by now, in VERIFY or since."""
        said = [arrivals[0].facts for gate in (Gate.VERIFIED, Gate.LATER) for _, arrivals in self.facts(gate)]
        return {name: one for facts in said if isinstance(facts, VerifyFacts) for name, one in facts.shapes.items()}

    @property
    def unverified(self) -> tuple[str, ...]:
        """Shapes that serve and are still to be verified."""
        verified = self.verdicts
        return tuple(name for name in self.shapes if name not in verified)

    @property
    def seconds(self) -> float:
        """From the start of the launch to ready."""
        return max(0.0, self.ready - self.started)

    # ---- for people

    def table(self, width: int = 120) -> str:
        """A table of phases and ranks, as text."""
        from rich.console import Console

        buffer = StringIO()
        Console(file=buffer, width=width, no_color=True, highlight=False).print(self.rich_table())
        return buffer.getvalue().rstrip()

    def rich_table(self) -> Any:
        """The same table for a rich console."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        title = f"{self.name}: ready after {self.seconds:.1f} s" if self.ready else f"{self.name}: not ready"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("phase")
        table.add_column("s", justify="right")
        shown = self.places[:8]
        for place in shown:
            table.add_column(f"rank {place.rank}", justify="right")
        table.add_column("what", overflow="fold")
        for phase in Phase:
            if phase is Phase.SERVE:
                continue
            busy = [f"{self.busy(place.rank, phase):.2f}" if phase is not Phase.PLACE else "" for place in shown]
            table.add_row(phase.name, f"{self.elapsed(phase):.2f}", *busy, escape(self.describe(phase)))
        if self.sampling:
            nothing = [""] * (1 + len(shown))
            table.add_row(Phase.SERVE.name, *nothing, escape(f"unless a request says otherwise: {self.sampling}"))
        return table

    def describe(self, phase: Phase) -> str:
        """What a phase brought, in a sentence: rank 0's numbers where ranks must agree."""
        by_gate = {record.step.gate: record.arrivals[0].facts for record in self.steps if record.arrivals}
        if phase is Phase.PLACE:
            nodes = len({place.node for place in self.places})
            adopted = sum(place.adopted for place in self.places)
            stood_by = f", {adopted} of which stood by" if adopted else ""
            where = f"{count(len(self.places), 'rank')} on {count(nodes, 'node')}{stood_by}"
            return f"{where}{self._describe_interfaces()}{self._describe_niceness()}"
        if phase is Phase.CONNECT and isinstance(facts := by_gate.get(Gate.CONNECTED), CommunicatorFacts):
            return _describe_all_reduce(facts)
        if phase is Phase.LOAD and isinstance(facts := by_gate.get(Gate.LOADED), LoadFacts):
            sizes = f"{human_bytes(facts.nbytes)} held, {human_bytes(facts.bytes_read)} read"
            dtype = f" of {facts.dtype}" if facts.dtype else ""
            return f"{facts.tensors} tensors per rank{dtype}, {sizes}{_describe_unused(facts)}"
        if phase is Phase.WARMUP and isinstance(facts := by_gate.get(Gate.WARMED), WarmupFacts):
            return describe_warmup(facts) + (f"; {self.kernels}" if self.kernels else "")
        if phase is Phase.CAPTURE:
            return self._describe_capture()
        if phase is Phase.REGISTER:
            return self._describe_register()
        if phase is Phase.VERIFY and isinstance(facts := by_gate.get(Gate.VERIFIED), VerifyFacts):
            left = len(self.unverified)
            later = f"; {count(left, 'shape')} left for when no request runs" if left else ""
            return _describe_verify(self.verdicts, len(facts.request_tokens)) + later
        return ""

    def _describe_niceness(self) -> str:
        said = [one.facts for _, arrivals in self.facts(Gate.MEET) for one in arrivals]
        nicest = max((one.niceness for one in said if isinstance(one, Identity)), default=0)
        return f"; at nice {nicest}, behind other processes: start Ray with {NICENESS}=0" if nicest > 0 else ""

    def _describe_capture(self) -> str:
        shapes: dict[str, set[int]] = {}
        barriers = 0
        for step, _ in self.facts(Gate.ITERATION):
            barriers += 1
            shapes.setdefault(step.round or "", set()).add(step.shape or 0)
        for step, arrivals in self.facts(Gate.CAPTURED):
            shapes.setdefault(step.round or "", set()).update(getattr(arrivals[0].facts, "recorded", {}))
        warmed = [arrivals[0].facts for _, arrivals in self.facts(Gate.WARMED) if arrivals]
        planned = {one.name: one.iterations for facts in warmed for one in getattr(facts, "rounds", ())}
        text = "; ".join(f"{name} {', '.join(map(str, sorted(sizes)))}" for name, sizes in shapes.items())
        iterations = " and ".join({str(planned.get(name, RoundPlan.iterations)): None for name in shapes})
        memory = sum(of_ranks[0] for of_ranks in self.capture_memory.values())
        size = f"; {human_bytes(memory)} per rank" if memory else ""
        return f"{text}; {iterations} iterations; {barriers} barriers{size}" if text else "nothing captured"

    def _describe_register(self) -> str:
        counts = [
            a.facts.registered
            for _, arrivals in self.facts(Gate.REGISTERED)
            for a in arrivals
            if isinstance(a.facts, RegisterFacts)
        ]
        # What was registered to be measured is counted by the ranks, and no part of the engine's graphs.
        measured = (self._all_reduce() or {}).get("registered", 0)
        return f"{max(counts) - measured} all-reduce inputs per rank, none pending" if counts else "nothing to register"

    # ---- for programs

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "started": self.started,
            "seconds": self.seconds,
            "attempts": self.attempts,
            "ranks": [asdict(place) for place in self.places],
            "phases": {
                phase.name: {
                    "seconds": self.elapsed(phase),
                    "busy": [self.busy(place.rank, phase) for place in self.places],
                    "what": self.describe(phase),
                }
                for phase in Phase
                if phase is not Phase.SERVE
            },
            "kv_tokens": self.kv_tokens,
            "sampling": self.sampling,
            "capture_memory": self.capture_memory,
            "standby": asdict(self.standby),
            "shapes": {"verified": len(self.verdicts), "left": list(self.unverified)},
            "kept_weights": asdict(self.kept),
            "all_reduce": self._all_reduce(),
            "steps": [
                {
                    "step": str(record.step),
                    "released": record.released,
                    "arrived": [arrival.arrived for arrival in record.arrivals],
                }
                for record in self.steps
            ],
        }

    def _describe_interfaces(self) -> str:
        """Which the ranks of several nodes reach one another over."""
        for _, arrivals in self.facts(Gate.MEET):
            named = {one.facts.interface: None for one in arrivals if isinstance(one.facts, Identity)}
            if any(named):
                return f", over {', '.join(named)}"
        return ""

    def _all_reduce(self) -> dict[str, Any] | None:
        """What the ranks agreed on, as rank 0 said it."""
        for _, arrivals in self.facts(Gate.CONNECTED):
            if arrivals and isinstance(facts := arrivals[0].facts, CommunicatorFacts):
                return asdict(facts)
        return None

    def chrome_trace(self) -> dict[str, Any]:
        """A trace in Chrome's JSON format, which Perfetto opens: a track for the driver, one for what its frontend does
        meanwhile, one for each rank."""
        ranks = len(self.places)
        events: list[dict[str, Any]] = [_named_track(0, "driver")]
        if self.beside:
            events.append(_named_track(ranks + 1, "frontend"))
        if self.command:
            events.append(_slice(0, "the command begins", self.command, self.started, "place"))
        events += [_slice(0, span.name, span.start, span.end, "place") for span in self.driver]
        events += [_slice(ranks + 1, span.name, span.start, span.end, "frontend") for span in self.beside]
        firsts = {one.rank: one.started for one in self.steps[0].arrivals} if self.steps else {}
        for place in self.places:
            events.append(_named_track(place.rank + 1, f"rank {place.rank} ({place.node}, pid {place.pid})"))
            if place.since and place.rank in firsts:
                events.append(_slice(place.rank + 1, "its process begins", place.since, firsts[place.rank], "place"))
        for record in self.steps:
            last = max((arrival.arrived for arrival in record.arrivals), default=record.released)
            events.append(_slice(0, f"barrier {record.step}", last, record.released, "barrier"))
            for arrival in record.arrivals:
                track, category = arrival.rank + 1, record.step.phase.name.lower()
                events.append(_slice(track, str(record.step), arrival.started, arrival.arrived, category))
                ends = [since for _, since in arrival.did[1:]] + [arrival.arrived]
                for (what, since), end in zip(arrival.did, ends, strict=False):
                    events.append(_slice(track, what, max(since, arrival.started), end, category))
                events.append(_slice(track, "waits for its peers", arrival.arrived, record.released, "wait"))
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"group": self.name}}

    def write_trace(self, file: str | Path) -> None:
        """Writes :meth:`chrome_trace`. Raises ``OSError``."""
        Path(file).write_text(json.dumps(self.chrome_trace()), encoding="utf-8")


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


def describe_warmup(facts: WarmupFacts) -> str:
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


def _named_track(track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": {"name": name}}


def _slice(track: int, name: str, start: float, end: float, category: str) -> dict[str, Any]:
    times = {"ts": start * 1e6, "dur": max(0.0, end - start) * 1e6}
    return {"ph": "X", "name": name, "cat": category, "pid": 1, "tid": track, **times}
