"""A program that only passes gates: measures what the driver's step costs by itself."""

from __future__ import annotations

from raylaunch.protocol import (
    CaptureFacts,
    CommunicatorFacts,
    Gate,
    Identity,
    IterationFacts,
    LoadFacts,
    ReadyFacts,
    RegisterFacts,
    ShapeVerdict,
    VerifyFacts,
    WarmupFacts,
)
from raylaunch_actors.gate import RankGate
from raylaunch_actors.spec import RankSpec


def run(spec: RankSpec, gate: RankGate) -> None:
    """Arrives at every gate of the plan with facts that break no rule, then waits for the stop."""
    gate.arrive(Gate.MEET, Identity("noop", 0, "cpu", spec.local_rank))
    gate.arrive(Gate.ATTACH)
    if spec.plan.measures:
        gate.arrive(Gate.PROBED)
        gate.arrive(Gate.MEASURED)
    gate.arrive(Gate.CONNECTED, CommunicatorFacts("single", "nothing is reduced", 0, spec.world_size))
    gate.arrive(Gate.LOADED, LoadFacts(0, 0, 0))
    gate.arrive(Gate.WARMED, WarmupFacts(pieces=0))
    verdicts = {}
    for plan in spec.plan.rounds:
        for shape in sorted(plan.shapes, reverse=True):
            for iteration in range(1, plan.iterations + 1):
                gate.arrive(Gate.ITERATION, IterationFacts(), round=plan.name, shape=shape, iteration=iteration)
            verdicts[f"{plan.name} {shape}"] = ShapeVerdict(0.0, 0.0, "", 0)
        gate.arrive(Gate.CAPTURED, CaptureFacts(), round=plan.name)
        gate.arrive(Gate.REGISTERED, RegisterFacts(0, 0), round=plan.name)
    gate.arrive(Gate.VERIFIED, VerifyFacts(verdicts))
    gate.arrive(Gate.READY, ReadyFacts())
    gate.stop_requested.wait()
