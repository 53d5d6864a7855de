"""What a rank says of its captured graphs, as plain data that the driver compares."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from raylaunch.protocol import CaptureFacts, RoundPlan, ShapeInputs
from raylaunch_actors.communicator.base import AllReduce, RecordedInput, pending_inputs
from raylaunch_actors.graphs.capture import CaptureRunner


def recorded_by_shape(inputs: Iterable[RecordedInput]) -> dict[int, ShapeInputs]:
    """Count, bytes and digest of the inputs of every shape. Addresses are left out: they differ from rank to rank."""
    by_shape: dict[int, list[RecordedInput]] = {}
    for one in inputs:
        by_shape.setdefault(one.shape, []).append(one)
    return {
        shape: ShapeInputs(
            len(group),
            sum(one.nbytes for one in group),
            hashlib.sha256("\n".join(one.describe() for one in group).encode()).hexdigest()[:16],
        )
        for shape, group in by_shape.items()
    }


def captured(plan: RoundPlan, capture: CaptureRunner, communicator: AllReduce) -> CaptureFacts:
    """Facts of a round at its end, before anything is exchanged."""
    pending = pending_inputs(communicator)
    audit, in_graphs = capture.audit(), capture.recorded_inputs()
    sizes: dict[int, list[int]] = {}
    for one in pending:
        sizes.setdefault(one.shape, []).append(one.nbytes)
    return CaptureFacts(
        recorded=recorded_by_shape(pending),
        sizes={shape: tuple(group) for shape, group in sizes.items()},
        in_graphs={shape: in_graphs[plan.name, shape] for shape in plan.shapes} if communicator.registration else {},
        missing={
            shape: tuple(index for index, has in enumerate(audit[plan.name, shape].values()) if not has)
            for shape in plan.shapes
        },
        replays=replays_of(capture),
        memory={shape: capture.added[plan.name, shape] for shape in plan.shapes},
    )


def replays_of(capture: CaptureRunner) -> int:
    """Replays of all pieces so far."""
    return sum(piece.replays for piece in capture.pieces)
