"""The protocol of a launch: its phases, the gates every rank passes, and the rules that release them.

A rank runs by itself between two gates and blocks at a gate until the driver releases it. The driver releases a
gate only when all ranks stand at it and no rule is broken. Plain data and plain functions: neither Ray nor torch
is imported here, so every launch can be replayed in a unit test.

``phases`` has the vocabulary, ``facts`` what ranks report, ``rules`` what must hold, ``machine`` the state machine.
"""

from raylaunch.protocol.facts import (
    NICENESS,
    NICENESS_IS_OURS,
    CaptureFacts,
    CommunicatorFacts,
    Facts,
    Identity,
    IterationFacts,
    LoadFacts,
    MeasuredSize,
    ReadyFacts,
    RegisterFacts,
    Route,
    ShapeInputs,
    ShapeVerdict,
    VerifyFacts,
    WarmupFacts,
)
from raylaunch.protocol.machine import Protocol
from raylaunch.protocol.phases import (
    Arrival,
    Failure,
    Gate,
    Granularity,
    LaunchPlan,
    Phase,
    Release,
    Step,
    Violation,
)
from raylaunch.protocol.rounds import RoundName, RoundPlan

__all__ = [
    "NICENESS",
    "NICENESS_IS_OURS",
    "Arrival",
    "CaptureFacts",
    "CommunicatorFacts",
    "Facts",
    "Failure",
    "Gate",
    "Granularity",
    "Identity",
    "IterationFacts",
    "LaunchPlan",
    "LoadFacts",
    "MeasuredSize",
    "Phase",
    "Protocol",
    "ReadyFacts",
    "RegisterFacts",
    "Release",
    "RoundName",
    "RoundPlan",
    "Route",
    "ShapeInputs",
    "ShapeVerdict",
    "Step",
    "VerifyFacts",
    "Violation",
    "WarmupFacts",
]
