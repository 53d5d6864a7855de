"""A program that times every all-reduce that is possible between its ranks, in graphs and eagerly.

It meets and connects as an engine does; what all ranks have measured leaves as rank 0's offer at the last gate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raylaunch.protocol import Gate, LoadFacts, ReadyFacts, VerifyFacts, WarmupFacts
from raylaunch_actors.communicator.base import AllReduce
from raylaunch_actors.communicator.nccl import NcclAllReduce
from raylaunch_actors.communicator.shared_memory import arena_bytes_needed
from raylaunch_actors.gate import RankGate
from raylaunch_actors.graphs.probes import Probes
from raylaunch_actors.reference.connect import Connection, meet
from raylaunch_actors.reference.link_setup import ARENA_SPARE, DTYPES, link_of
from raylaunch_actors.spec import RankSpec

SIZES, REPEATS = "RAYLAUNCH_BENCH_SIZES", "RAYLAUNCH_BENCH_REPEATS"
"""Environment variables: message sizes in bytes as a JSON list, and runs of each graph."""
IN_PLACE = "nccl in place"


@dataclass(frozen=True)
class Measured:
    """One rank's measurements.

    Attributes:
        graph, eager: microseconds of an all-reduce by kind and bytes.
        link_bandwidth: bytes per second that the rank's NVLinks carry in one direction, None if there are none.
        dtype: of the elements.
    """

    graph: Mapping[str, Mapping[int, float]]
    eager: Mapping[str, Mapping[int, float]]
    link_bandwidth: float | None
    dtype: str


class InPlace:
    """NCCL as it is where nobody needs the input any more: without the copy that a functional all-reduce makes."""

    def __init__(self, nccl: NcclAllReduce) -> None:
        self._nccl = nccl

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum, in x."""
        return self._nccl.reduce_in_place(x)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nccl, name)


def run(spec: RankSpec, gate: RankGate) -> None:
    """Connects, measures, passes the gates that are left, and waits for the stop."""
    torch.set_num_threads(spec.config.engine.threads)
    sizes, repeats = tuple(json.loads(os.environ[SIZES])), int(os.environ[REPEATS])
    with Connection(spec, Path(spec.config.model.path).expanduser()) as connection:
        device = meet(connection, gate)
        dtype = DTYPES.get(spec.config.model.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32)
        arena = arena_bytes_needed(spec.config.communicator.max_bytes, 1, 1, max(sizes), 1) + ARENA_SPARE
        connection.link = link = link_of(spec, sizes, arena)
        offers = gate.arrive(Gate.ATTACH, offer=link.offer()).offers
        link.connect(offers, connection.rendezvous.store, gate.progress)
        probes = Probes(variants(link.opened), sizes, dtype, device)
        probes.register(gate.arrive(Gate.PROBED, offer=probes.capture()).offers)
        graph, eager = times(probes, repeats, gate)
        bandwidth = offers[spec.rank].share.place.link_bandwidth if device.type == "cuda" else None
        measured = Measured(graph, eager, bandwidth, str(dtype).removeprefix("torch."))
        ranks = gate.arrive(Gate.MEASURED, offer=measured).offers
        link.decide([one.graph for one in ranks])
        gate.arrive(Gate.CONNECTED, link.facts())
        gate.arrive(Gate.LOADED, LoadFacts(0, 0, 0))
        gate.arrive(Gate.WARMED, WarmupFacts(pieces=0))
        gate.arrive(Gate.VERIFIED, VerifyFacts({}))
        gate.arrive(Gate.READY, ReadyFacts(), offer=ranks)
        gate.stop_requested.wait()


def variants(opened: Mapping[str, AllReduce]) -> dict[str, AllReduce]:
    """What is timed: every kind that is possible, and NCCL in place beside NCCL."""
    found: dict[str, Any] = dict(opened)
    nccl = opened.get("nccl")
    if isinstance(nccl, NcclAllReduce):
        found[IN_PLACE] = InPlace(nccl)
    return found


def times(
    probes: Probes, repeats: int, gate: RankGate
) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    """Microseconds in graphs and eagerly; reports progress before each measurement."""
    graph: dict[str, dict[int, float]] = {kind: {} for kind in probes.communicators}
    eager: dict[str, dict[int, float]] = {kind: {} for kind in probes.communicators}
    for size in probes.sizes:
        for kind in probes.communicators:
            gate.progress(f"timing {kind}, {size} bytes")
            graph[kind][size] = probes.measure(probes.graph(kind, size), repeats)
            eager[kind][size] = probes.measure(probes.eager(kind, size), repeats)
    return graph, eager
