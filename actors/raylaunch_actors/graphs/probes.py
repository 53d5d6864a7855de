"""All-reduces that are only there to be timed: what `auto` and `raylaunch bench allreduce` go by.

Used in three verbs: `capture()` makes small graphs and gives their inputs, which peers must know; `register()` is told
all ranks' inputs; `measure()` times. Every rank does the same in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median_high
from typing import Any, Protocol

import torch

from raylaunch_actors.communicator.base import AllReduce, CallLabel, RecordedInput, pending_inputs, register_inputs
from raylaunch_actors.graphs.backend import GraphLabel
from raylaunch_actors.graphs.cuda import CudaGraphs

CALLS: Mapping[str, int] = {"cpu": 10, "cuda": 40}
"""All-reduces in a graph, by device: one alone would mostly time its launch, and between two replays on a GPU are 3 us,
in which a small one is done."""
WARM = 2
QUEUED = 16  # runs ahead of the GPU: more than a pause of the host, fewer launches than CUDA takes without waiting
TimedRun = Callable[[], object]


class Probes:
    """Graphs of all-reduces, one for each kind and message size.

    Args:
        communicators: by kind; at most one of them registers inputs.
        sizes: bytes of the messages, multiples of the item size.
        dtype: of the elements.
        device: where they run.

    Attributes:
        calls: all-reduces in a run.
    """

    def __init__(
        self,
        communicators: Mapping[str, AllReduce],
        sizes: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.communicators, self.sizes, self.dtype, self.device = communicators, tuple(sizes), dtype, device
        self.calls = CALLS[device.type]
        self._graphs: dict[tuple[str, int], TimedRun] = {}
        self._inputs: dict[str, torch.Tensor] = {}

    # ---- graphs

    def capture(self) -> tuple[RecordedInput, ...]:
        """Captures every graph. The pending inputs of those that have to be registered; all ranks' are wanted back."""
        for kind, communicator in self.communicators.items():
            with communicator.capture():
                for size in self.sizes:
                    self._graphs[kind, size] = self._graph(kind, communicator, size)
        return tuple(one for member in self.communicators.values() for one in pending_inputs(member))

    def register(self, peers: Sequence[Sequence[RecordedInput]]) -> None:
        """Makes the graphs runnable. Raises RankFault F03 if ranks captured different ones."""
        for communicator in self.communicators.values():
            register_inputs(communicator, peers)

    def _graph(self, kind: str, communicator: Any, size: int) -> TimedRun:
        x = self._input(kind, size)
        communicator.all_reduce(x)  # what a kind does the first time at a size is not to be captured, nor timed
        if self.device.type == "cuda":
            return self._cuda_graph(communicator, x)
        out = torch.empty_like(x)
        labels = [CallLabel("probe", size, kind, index) for index in range(self.calls)]
        calls = [communicator.record(x, out, label) for label in labels]
        return lambda: [call.run() for call in calls]

    def _cuda_graph(self, communicator: Any, x: torch.Tensor) -> TimedRun:
        def calls(x: torch.Tensor) -> None:
            for _ in range(self.calls):
                communicator.all_reduce(x)

        graphs = CudaGraphs(communicator, self.device)
        label = GraphLabel("probe", x.numel() * x.element_size(), communicator.kind)
        return graphs.capture(calls, [x], label, graphs.new_pool()).replay

    def _input(self, kind: str, size: int) -> torch.Tensor:
        if kind not in self._inputs:
            self._inputs[kind] = self.communicators[kind].input_memory(max(self.sizes)).zero_()
        return self._inputs[kind][:size].view(self.dtype)

    # ---- times

    def graph(self, kind: str, size: int) -> TimedRun:
        """Runs the graph of ``calls`` all-reduces."""
        return self._graphs[kind, size]

    def eager(self, kind: str, size: int) -> TimedRun:
        """Runs ``calls`` all-reduces one by one."""
        x, communicator = self._input(kind, size), self.communicators[kind]
        return lambda: [communicator.all_reduce(x) for _ in range(self.calls)]

    def measure(self, run: TimedRun, repeats: int) -> float:
        """Microseconds of one all-reduce: the median of ``repeats`` runs.

        On a GPU one run follows the other without a gap, as layers do: how long a launch takes to arrive and how far
        ranks are apart when they begin is not in it, unless the host is slower than the GPU.
        """
        for _ in range(WARM):
            run()
        times = _gpu_times if self.device.type == "cuda" else _cpu_times
        return median_microseconds(times(run, repeats), self.calls)

    def drop_graphs(self) -> None:
        """Forgets the graphs and their inputs, but for those that are registered: they must stay allocated for ever."""
        registered = {kind for kind, _ in self._graphs if self.communicators[kind].registration}
        self._inputs = {kind: x for kind, x in self._inputs.items() if kind in registered}
        self._graphs.clear()


class Mark(Protocol):
    """A place in a stream, such as ``torch.cuda.Event``."""

    def record(self) -> None:
        """Puts it behind all that is enqueued."""

    def synchronize(self) -> None:
        """Returns when the device has come to it."""


def enqueue(run: TimedRun, marks: Sequence[Mark]) -> None:
    """Enqueues a run between each two marks, at most ``QUEUED`` ahead of the device; returns when all are done."""
    marks[0].record()
    for number, mark in enumerate(marks[1:]):
        if number >= QUEUED:
            marks[number - QUEUED + 1].synchronize()
        run()
        mark.record()
    marks[-1].synchronize()


def median_microseconds(times: Sequence[float], calls: int) -> float:
    """Microseconds of one all-reduce, from when the first run of ``calls`` began and when each ended, in seconds."""
    return median_high(end - begin for begin, end in pairwise(times)) / calls * 1e6


def _cpu_times(run: TimedRun, repeats: int) -> list[float]:
    times = [time.perf_counter()]
    for _ in range(repeats):
        run()
        times.append(time.perf_counter())
    return times


def _gpu_times(run: TimedRun, repeats: int) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    enqueue(run, marks)
    return [0.0, *(float(marks[0].elapsed_time(mark)) / 1e3 for mark in marks[1:])]
