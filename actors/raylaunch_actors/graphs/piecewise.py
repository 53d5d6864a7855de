"""One piece of a compiled model: runs as it is, warms, captures or replays, as the forward context says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from raylaunch.errors import CaptureError, RankFault
from raylaunch_actors.graphs import context
from raylaunch_actors.graphs.addresses import FixedAddresses
from raylaunch_actors.graphs.backend import Graph, GraphBackend, GraphLabel
from raylaunch_actors.graphs.context import ForwardContext, Mode

Key = tuple[str, int]  # round, shape


@dataclass
class ShapeState:
    """What a piece knows about one (round, shape).

    Attributes:
        warmed: the first iteration has run.
        graph: captured by the second.
        copies: (argument index, static input): copied in before a replay.
        pinned: (argument index, address, name): must still be there at a replay.
        constants: (argument index, value): integers that the graph was captured with.
    """

    warmed: bool = False
    graph: Graph | None = None
    copies: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    pinned: list[tuple[int, int, str]] = field(default_factory=list)
    constants: list[tuple[int, object]] = field(default_factory=list)


class PiecewiseGraph(torch.nn.Module):
    """A piece between two attention operations.

    Args:
        module: what it computes: a function of tensors and sizes.
        name: such as ``piece3``.
        backend: captures it.
        addresses: what its graphs may read in place.

    Attributes:
        name: such as ``piece3``.
        replays: how often a graph of it was replayed.
        pool: memory of its graphs.
    """

    def __init__(self, module: Callable[..., Any], name: str, backend: GraphBackend, addresses: FixedAddresses) -> None:
        super().__init__()
        self.module = module
        self.name = name
        self.replays = 0
        self.pool = backend.new_pool()
        self._backend = backend
        self._addresses = addresses
        self._states: dict[Key, ShapeState] = {}

    def graphs(self) -> set[Key]:
        """The (round, shape) pairs that have a graph."""
        return {key for key, state in self._states.items() if state.graph is not None}

    def graph(self, round: str, shape: int) -> Graph | None:
        """The graph of a round and shape."""
        state = self._states.get((round, shape))
        return state.graph if state else None

    def forward(self, *args: Any) -> Any:
        """Runs the piece in the current forward context.

        Raises:
            RankFault: F01 if a captured shape runs again before registration; F04 if something a graph reads in
                place has moved; F20 if there is no graph to replay, or it was captured for other sizes.
            CaptureError: the piece cannot be captured, or was not warmed.
        """
        now = context.current()
        if now.mode is Mode.EAGER or now.mode is Mode.TRACE:
            return self.module(*args)
        key = (now.round, now.shape)
        if now.mode is Mode.REPLAY:
            state = self._states.get(key)
            if state is None or state.graph is None:
                raise RankFault("F20", f"{self.name} has no graph for {now.round}, shape {now.shape}: {self._has()}")
            return self._replay(state, state.graph, args)
        state = self._states.setdefault(key, ShapeState())
        if state.graph is not None:
            raise RankFault(
                "F01",
                f"{self.name} at {now.round}, shape {now.shape} has been warmed and captured: one more "
                "iteration would replay its graph before its all-reduce inputs are registered",
            )
        if now.mode is Mode.WARM:
            state.warmed = True
            return self.module(*args)
        return self._capture(state, now, args)

    def _has(self) -> str:
        return "it has graphs for " + (", ".join(f"{r} {s}" for r, s in sorted(self.graphs())) or "no shape")

    def _capture(self, state: ShapeState, now: ForwardContext, args: Sequence[Any]) -> Any:
        label = GraphLabel(now.round, now.shape, self.name)
        if not state.warmed:
            raise CaptureError(None, f"{label} is captured without a warm iteration before")
        copied: list[int] = []
        pinned: list[tuple[int, int, str]] = []
        for index, arg in enumerate(args):
            if isinstance(arg, torch.Tensor):
                name = self._addresses.name_of(arg)
                if name is None:
                    copied.append(index)
                else:
                    pinned.append((index, arg.data_ptr(), name))
        inputs = list(args)
        static = self.pool.static_inputs([args[index] for index in copied])
        for index, tensor in zip(copied, static, strict=True):
            inputs[index] = tensor.copy_(args[index])
        graph = self._backend.capture(self.module, inputs, label, self.pool, read_only=static)
        state.constants = [(i, a) for i, a in enumerate(args) if not isinstance(a, torch.Tensor)]
        state.copies = list(zip(copied, static, strict=True))
        state.pinned = pinned
        state.graph = graph
        self._addresses.add_outputs(self.name, graph.outputs)
        return graph.outputs

    def _replay(self, state: ShapeState, graph: Graph, args: Sequence[Any]) -> Any:
        for index, value in state.constants:
            if args[index] != value:
                raise RankFault("F20", f"{graph.label} was captured with size {value}, it is given {args[index]}")
        for index, address, name in state.pinned:
            if args[index].data_ptr() != address:
                raise RankFault(
                    "F04",
                    f"{graph.label}: the address of {name} changed after capture, from {address:#x} to "
                    f"{args[index].data_ptr():#x}: the graph would read freed memory",
                )
        for index, tensor in state.copies:
            source = args[index]
            if source.shape != tensor.shape:  # copy_ would broadcast
                raise RankFault(
                    "F20",
                    f"{graph.label}: argument {index} was captured as {tuple(tensor.shape)}, it is given as "
                    f"{tuple(source.shape)}",
                )
            tensor.copy_(source)
        self.replays += 1
        return graph.replay()
