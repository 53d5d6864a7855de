"""All-reduces that are only there to be timed: what `auto` and `raylaunch bench allreduce` go by.

Used in three verbs: `capture()` makes small graphs and gives their inputs, which peers must know; `register()` is told
all ranks' inputs; `measure()` times. Every rank does the same in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from actors.communicator.base import CallLabel, Communicator, RecordedInput
from actors.graphs.backend import GraphLabel
from actors.graphs.cuda import CudaGraphs

CALLS = 10  # all-reduces in a graph: one alone would mostly time its launch
WARM = 2
Run = Callable[[], object]


class Probes:
    """Graphs of all-reduces, one for each kind and message size.

    Args:
        communicators: by kind; at most one of them registers inputs.
        sizes: bytes of the messages, multiples of the item size.
        dtype: of the elements.
        device: where they run.
    """

    def __init__(
        self,
        communicators: Mapping[str, Communicator],
        sizes: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.communicators, self.sizes, self.dtype, self.device = communicators, tuple(sizes), dtype, device
        self._graphs: dict[tuple[str, int], Run] = {}
        self._inputs: dict[str, torch.Tensor] = {}  # kept for ever: what is registered must stay allocated

    # ---- graphs

    def capture(self) -> tuple[RecordedInput, ...]:
        """Captures every graph. The pending inputs of those that have to be registered; all ranks' are wanted back."""
        for kind, communicator in self.communicators.items():
            with communicator.capture():
                for size in self.sizes:
                    self._graphs[kind, size] = self._graph(kind, communicator, size)
        return tuple(one for member in self.communicators.values() for one in member.pending())

    def register(self, peers: Sequence[Sequence[RecordedInput]]) -> None:
        """Makes the graphs runnable. Raises RankFault F03 if ranks captured different ones."""
        for communicator in self.communicators.values():
            if communicator.registers:
                communicator.register(peers)

    def _graph(self, kind: str, communicator: Any, size: int) -> Run:
        x = self._input(kind, size)
        communicator.all_reduce(x)  # what a kind does the first time at a size is not to be captured, nor timed
        if self.device.type == "cuda":
            return self._cuda_graph(communicator, x)
        out = torch.empty_like(x)
        labels = [CallLabel("probe", size, kind, index) for index in range(CALLS)]
        calls = [communicator.record(x, out, label) for label in labels]
        return lambda: [call.run() for call in calls]

    def _cuda_graph(self, communicator: Any, x: torch.Tensor) -> Run:
        def calls(x: torch.Tensor) -> None:
            for _ in range(CALLS):
                communicator.all_reduce(x)

        graphs = CudaGraphs(communicator, self.device)
        label = GraphLabel("probe", x.numel() * x.element_size(), communicator.kind)
        return graphs.capture(calls, [x], label, graphs.new_pool()).replay

    def _input(self, kind: str, size: int) -> torch.Tensor:
        if kind not in self._inputs:
            self._inputs[kind] = self.communicators[kind].input_memory(max(self.sizes)).zero_()
        return self._inputs[kind][:size].view(self.dtype)

    # ---- times

    def graph(self, kind: str, size: int) -> Run:
        """Runs the graph of ``CALLS`` all-reduces."""
        return self._graphs[kind, size]

    def eager(self, kind: str, size: int) -> Run:
        """Runs ``CALLS`` all-reduces one by one."""
        x, communicator = self._input(kind, size), self.communicators[kind]
        return lambda: [communicator.all_reduce(x) for _ in range(CALLS)]

    def measure(self, run: Run, repeats: int) -> float:
        """Microseconds of one all-reduce: the median of ``repeats`` runs."""
        for _ in range(WARM):
            run()
        clock = _gpu_seconds if self.device.type == "cuda" else _seconds
        taken = sorted(clock(run) for _ in range(repeats))
        return taken[len(taken) // 2] / CALLS * 1e6

    def drop_graphs(self) -> None:
        """Forgets the graphs; the memory of registered inputs stays."""
        self._graphs.clear()


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _gpu_seconds(run: Run) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
