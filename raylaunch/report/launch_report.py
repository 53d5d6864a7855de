"""Everything a launch has said, and what follows of it; the ways to show it are in files of their own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from raylaunch.protocol import (
    Arrival,
    CaptureFacts,
    CommunicatorFacts,
    Gate,
    Phase,
    ShapeVerdict,
    Step,
    VerifyFacts,
    WarmupFacts,
)
from raylaunch.report.records import Due, KeptWeights, RankPlace, Span, Standing, StepRecord
from raylaunch.report.table import described, phase_table
from raylaunch.report.trace import chrome_trace


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
    standby: Standing = field(default_factory=Standing)
    kernels: str = ""
    shapes: tuple[str, ...] = ()
    kept: KeptWeights = field(default_factory=KeptWeights)
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
    def all_reduce(self) -> dict[str, Any] | None:
        """What the ranks agreed on, as rank 0 said it; None before CONNECT has ended."""
        for _, arrivals in self.facts(Gate.CONNECTED):
            if arrivals and isinstance(facts := arrivals[0].facts, CommunicatorFacts):
                return asdict(facts)
        return None

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
        return phase_table(self)

    def describe(self, phase: Phase) -> str:
        """What a phase brought, in a sentence: rank 0's numbers where ranks must agree."""
        return described(self, phase)

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
            "all_reduce": self.all_reduce,
            "steps": [
                {
                    "step": str(record.step),
                    "released": record.released,
                    "arrived": [arrival.arrived for arrival in record.arrivals],
                }
                for record in self.steps
            ],
        }

    def chrome_trace(self) -> dict[str, Any]:
        """A trace in Chrome's JSON format, which Perfetto opens: a track for the driver, one for what its frontend does
        meanwhile, one for each rank."""
        return chrome_trace(self)

    def write_trace(self, file: str | Path) -> None:
        """Writes :meth:`chrome_trace`. Raises ``OSError``."""
        Path(file).write_text(json.dumps(self.chrome_trace()), encoding="utf-8")
