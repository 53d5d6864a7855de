"""Graphs for a CPU: one run recorded operation by operation, replayed over fixed storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from raylaunch_actors.communicator.base import CallLabel, RecordedCall, RecordsCalls, require_capture
from raylaunch_actors.graphs.backend import GraphLabel, require_registered
from raylaunch_actors.graphs.binding import bind
from raylaunch_actors.graphs.memory_plan import place
from raylaunch_actors.graphs.pool import RecordedPool, Region
from raylaunch_actors.graphs.recorder import Recorder, storage_key, tensors_in


class RecordedGraph:
    """A graph of operations that are replayed one by one.

    Attributes:
        calls: its all-reduces, in order.
    """

    def __init__(self, label: GraphLabel, communicator: RecordsCalls) -> None:
        self.label = label
        self.outputs: Any = None
        self.calls: list[RecordedCall] = []
        self._communicator = communicator
        self._program: list[Callable[[], object]] = []
        self._runnable = False

    @property
    def recorded_inputs(self) -> int:
        """How many all-reduce inputs it holds that have to be registered."""
        return sum(call.needs_peers for call in self.calls)

    def replay(self) -> Any:
        if not self._runnable:
            require_registered(self.label, self._communicator, self.calls)
            self._runnable = True
        with torch.no_grad():  # parameters may require gradients, and out= does not support them
            for operation in self._program:
                operation()
        return self.outputs

    def _build(self, recorder: Recorder, outputs: Any, pool: RecordedPool) -> None:
        """Moves what was recorded to fixed places, and fills the outputs with the recorded run's results."""
        shared, private = (place(blocks) for blocks in recorder.lifetimes(outputs))
        # regions before anything is recorded with the communicator: a full arena leaves nothing behind
        homes: dict[int, tuple[Region, int]] = {}
        for placement, region in (
            (shared, pool.shared(shared.nbytes)),
            (private, pool.private(private.nbytes)),
        ):
            homes.update((key, (region, offset)) for key, offset in placement.offsets.items())
        moved: dict[int, torch.Tensor] = {}  # by id: the recorder keeps the originals alive

        def move(tensor: torch.Tensor) -> torch.Tensor:
            home = homes.get(storage_key(tensor))
            if home is None:  # a parameter, a static input, a constant
                return tensor
            if id(tensor) not in moved:
                region, offset = home
                offset += tensor.storage_offset() * tensor.element_size()
                moved[id(tensor)] = region.view(offset, tensor.shape, tensor.stride(), tensor.dtype)
            return moved[id(tensor)]

        for step in recorder.steps:
            args, kwargs, results = tree_map_only(torch.Tensor, move, (step.args, step.kwargs, step.outputs))
            if step.kind == "all-reduce":
                label = CallLabel(self.label.round, self.label.shape, self.label.piece, len(self.calls))
                call = self._communicator.record(args[0], results[0], label)
                self.calls.append(call)
                self._program.append(call.run)
            elif step.kind == "in place":
                self._program.append(_call(step.func, args, kwargs))
            else:
                self._program.append(bind(step.func, args, kwargs, results))
        self.outputs = tree_map_only(torch.Tensor, move, outputs)
        for target, source in zip(tensors_in(self.outputs), tensors_in(outputs), strict=True):
            if target is not source:
                target.copy_(source)


class RecordedGraphs:
    """Records operations and replays them on fixed storage.

    Args:
        communicator: the one whose all-reduces the graphs hold.
    """

    name = "recorded"

    def __init__(self, communicator: RecordsCalls) -> None:
        self.communicator = communicator
        self._pools: list[RecordedPool] = []

    def new_pool(self) -> RecordedPool:
        self._pools.append(RecordedPool(self.communicator))
        return self._pools[-1]

    def memory(self) -> int:
        """The regions of all pools."""
        return sum(region.nbytes for pool in self._pools for region in pool.regions)

    def capture(
        self,
        fn: Callable[..., Any],
        inputs: Sequence[Any],
        label: GraphLabel,
        pool: RecordedPool,
        read_only: Sequence[torch.Tensor] = (),
    ) -> RecordedGraph:
        require_capture(self.communicator, str(label))
        recorder = Recorder(label, self.communicator, read_only)
        with torch.no_grad():
            with recorder:
                outputs = fn(*inputs)
            graph = RecordedGraph(label, self.communicator)
            graph._build(recorder, outputs, pool)
        return graph


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], object]:
    return lambda: func._op(*args, **kwargs)
