"""CUDA graphs of pieces: one for each piece and shape, all in one memory pool, captured on one stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from raylaunch.errors import CaptureError, RankFault
from raylaunch_actors.communicator.base import AllReduce, RecordedCall, RecordsStreams, require_capture
from raylaunch_actors.communicator.streams import wait_for
from raylaunch_actors.graphs.backend import GraphLabel, require_registered


class CudaPool:
    """Static inputs of one piece, shared by its graphs of all shapes; the rest is in the backend's own pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inputs: list[tuple[int, torch.Tensor]] = []  # which of a graph's inputs it is, and flat memory

    def static_inputs(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """A smaller shape gets the beginning of what a larger one has: only one of them is replayed at a time."""
        return [self._input(index, tensor) for index, tensor in enumerate(like)]

    def _input(self, index: int, like: torch.Tensor) -> torch.Tensor:
        fitting = next(
            (t for i, t in self._inputs if i == index and t.dtype == like.dtype and t.numel() >= like.numel()), None
        )
        if fitting is None:
            fitting = torch.empty(like.numel(), dtype=like.dtype, device=self._device)
            self._inputs.append((index, fitting))
        return fitting[: like.numel()].view(like.shape)

    def poison(self) -> None:
        """Floating-point inputs become NaN."""
        for _, tensor in self._inputs:
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)


class CudaPieceGraph:
    def __init__(self, label: GraphLabel, communicator: AllReduce) -> None:
        self.label = label
        self.outputs: Any = None
        self.graph = torch.cuda.CUDAGraph()
        self.calls: list[RecordedCall] = []
        self._communicator = communicator
        self._runnable = False

    @property
    def recorded_inputs(self) -> int:
        """How many all-reduce inputs it holds."""
        return len(self.calls)

    def replay(self) -> Any:
        if not self._runnable:
            require_registered(self.label, self._communicator, self.calls)
            self._runnable = True
        self.graph.replay()
        return self.outputs


class CudaGraphs:
    """CUDA graphs, one for each piece and shape.

    Args:
        communicator: the one whose all-reduces the graphs hold.
        device: where they run.
    """

    name = "cuda"

    def __init__(self, communicator: RecordsStreams, device: torch.device) -> None:
        self.communicator, self.device = communicator, device
        self._memory = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def new_pool(self) -> CudaPool:
        return CudaPool(self.device)

    def memory(self) -> int:
        """What torch's allocator has reserved."""
        return torch.cuda.memory_reserved(self.device)

    def capture(
        self,
        fn: Callable[..., Any],
        inputs: Sequence[Any],
        label: GraphLabel,
        pool: CudaPool,
        read_only: Sequence[torch.Tensor] = (),
    ) -> CudaPieceGraph:
        """The outputs hold nothing yet."""
        require_capture(self.communicator, str(label))
        graph = CudaPieceGraph(label, self.communicator)
        wait_for(self.device)
        # Not torch.cuda.graph(): it collects garbage and empties the cache each time, a second for every shape.
        recording = self.communicator.recording(label.round, label.shape, label.piece)
        with torch.no_grad(), torch.cuda.stream(self._stream), recording as calls:
            graph.graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
            try:
                graph.outputs = fn(*inputs)
            except BaseException as error:
                _leave(graph.graph)
                if isinstance(error, RankFault):
                    raise
                raise CaptureError(None, f"{label} cannot be captured: {error}") from error
            graph.graph.capture_end()
        graph.calls = list(calls)
        return graph


def _leave(graph: torch.cuda.CUDAGraph) -> None:
    try:
        graph.capture_end()
    except RuntimeError:
        return  # the capture is broken, which its own error says better
