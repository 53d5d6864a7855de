"""What a launch is made of: phases, gates, steps, and what ranks and driver say to one another at a gate."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from raylaunch.protocol.facts import Facts
from raylaunch.protocol.rounds import RoundName, RoundPlan, first_verified

Granularity = Literal["phase", "shape", "iteration"]


class Phase(enum.Enum):
    """Phases of a launch, in order."""

    PLACE = 0
    CONNECT = 1
    LOAD = 2
    WARMUP = 3
    CAPTURE = 4  # the only one in which graphs are captured
    REGISTER = 5
    VERIFY = 6  # from here on graphs are replayed
    SERVE = 7


class Gate(enum.Enum):
    """Points where a rank stops and waits for its peers. Each belongs to the phase that it ends or divides."""

    MEET = ("meet", Phase.CONNECT)  # who am I; rank 0 offers the address of the store it has bound
    ATTACH = ("attach", Phase.CONNECT)  # offers a handle of the memory that peers may map
    PROBED = ("probed", Phase.CONNECT)  # has captured all-reduces to be timed; offers their inputs
    MEASURED = ("measured", Phase.CONNECT)  # offers the times
    CONNECTED = ("connected", Phase.CONNECT)
    LOADED = ("loaded", Phase.LOAD)
    WARMED = ("warmed", Phase.WARMUP)
    ITERATION = ("iteration", Phase.CAPTURE)  # before each iteration of each shape
    CAPTURED = ("captured", Phase.CAPTURE)  # end of a round; offers the recorded all-reduce inputs
    REGISTERED = ("registered", Phase.REGISTER)
    VERIFIED = ("verified", Phase.VERIFY)
    READY = ("ready", Phase.VERIFY)  # rank 0 offers the sockets that requests go through
    LATER = ("verified later", Phase.SERVE)  # one shape, between requests; no step of the launch

    def __init__(self, label: str, phase: Phase) -> None:
        self.label, self.phase = label, phase


@dataclass(frozen=True)
class Step:
    """One barrier of a launch: a gate and, inside CAPTURE and REGISTER, its round, shape and iteration."""

    gate: Gate
    round: RoundName | None = None
    shape: int | None = None
    iteration: int | None = None

    @property
    def phase(self) -> Phase:
        return self.gate.phase

    def __str__(self) -> str:
        parts = [self.phase.name, self.gate.label]
        if self.round:
            parts.append(self.round)
        if self.shape is not None:
            parts.append(f"{self.shape} {'requests' if self.round == 'decode' else 'tokens'}")
        if self.iteration is not None:
            parts.append(f"iteration {self.iteration}")
        return " ".join(parts)


@dataclass(frozen=True)
class LaunchPlan:
    """All that decides which gates a launch has.

    Attributes:
        world_size: number of ranks.
        rounds: capture rounds in order; empty when nothing is captured.
        granularity: which barriers CAPTURE has: one per ``iteration``, per ``shape``, or none (``phase``).
        rounds_from_ranks: only the ranks' engine knows the rounds: they say so at WARMED.
        measures: whether ranks time the all-reduces that are possible before they choose.
        verify_first: how many shapes of each round are verified before READY beside its edges; None is all.
    """

    world_size: int
    rounds: tuple[RoundPlan, ...] = ()
    granularity: Granularity = "iteration"
    rounds_from_ranks: bool = False
    measures: bool = False
    verify_first: int | None = None

    def with_rounds(self, rounds: tuple[RoundPlan, ...]) -> LaunchPlan:
        """The plan once the ranks have said which rounds there are."""
        return replace(self, rounds=rounds, rounds_from_ranks=False)

    def round(self, name: str | None) -> RoundPlan | None:
        return next((plan for plan in self.rounds if plan.name == name), None)

    @property
    def shapes(self) -> tuple[tuple[RoundName, int], ...]:
        """Every round and shape that is captured, in the order in which they are verified."""
        return tuple((plan.name, shape) for plan in self.rounds for shape in sorted(plan.shapes, reverse=True))

    def verified_first(self, round_name: str, shape: int) -> bool:
        """Whether a shape is verified before READY; the others are between requests."""
        plan = self.round(round_name)
        return plan is None or shape in first_verified(plan.shapes, self.verify_first)

    def steps(self) -> Iterator[Step]:
        """Every barrier of this launch, in order."""
        probes = (Gate.PROBED, Gate.MEASURED) if self.measures else ()
        for gate in (Gate.MEET, Gate.ATTACH, *probes, Gate.CONNECTED, Gate.LOADED, Gate.WARMED):
            yield Step(gate)
        for plan in self.rounds:
            for shape in sorted(plan.shapes, reverse=True):
                for iteration in range(1, plan.iterations + 1):
                    if self.stops_at(plan.name, iteration):
                        yield Step(Gate.ITERATION, plan.name, shape, iteration)
            yield Step(Gate.CAPTURED, plan.name)
            yield Step(Gate.REGISTERED, plan.name)
        yield Step(Gate.VERIFIED)
        yield Step(Gate.READY)

    def stops_at(self, round_name: str, iteration: int) -> bool:
        """Whether ranks stop before this iteration of a shape. They always stop before one that should not be."""
        plan = self.round(round_name)
        if self.granularity == "iteration" or plan is None or iteration > plan.iterations:
            return True
        return self.granularity == "shape" and iteration == 1


@dataclass(frozen=True)
class Arrival:
    """What a rank says when it reaches a gate.

    Attributes:
        rank: tensor-parallel rank.
        step: the gate it stands at.
        facts: what its peers must agree on.
        offer: what it hands to its peers if all are released (addresses, handles); plain data.
        started: when it left the previous gate, seconds since the epoch.
        arrived: when it reached this one.
        did: what it has said of its work on the way, the first of it, and since when.
    """

    rank: int
    step: Step
    facts: Facts = None
    offer: Any = field(default=None, repr=False)  # may be secret, and is long
    started: float = 0.0
    arrived: float = 0.0
    did: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Failure:
    """What a rank says instead when it cannot go on.

    Attributes:
        step: the gate it was heading for, or the last one it passed inside CAPTURE.
        error: name of the exception's type.
        message: its text.
        code: fault number, if the rank knows it.
        secondary: whether the error only says that a peer did not answer.
        traceback: the rank's own.
        when: seconds since the epoch.
    """

    rank: int
    step: Step | None
    error: str
    message: str
    code: str | None = None
    secondary: bool = False
    traceback: str = ""
    when: float = 0.0


@dataclass(frozen=True)
class Release:
    """Permission to leave a gate. ``offers`` are all ranks' offers, in rank order."""

    step: Step
    offers: tuple[Any, ...] = field(repr=False)


@dataclass(frozen=True)
class Violation:
    """A broken rule.

    Attributes:
        code: fault number, or None.
        summary: one sentence.
        step: where it was found; ``shape`` is the first shape concerned where one is.
        rank: the first rank that differs, or None where no single rank does.
        states: one phrase per rank: what it said.
    """

    code: str | None
    summary: str
    step: Step
    rank: int | None = None
    states: Mapping[int, str] = field(default_factory=dict)
