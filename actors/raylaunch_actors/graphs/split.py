"""Compiles a model once, with Dynamo, and cuts it at ``raylaunch::attention`` into pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.passes.split_module import split_module

from raylaunch.errors import RankFault
from raylaunch_actors.graphs import context
from raylaunch_actors.graphs.addresses import FixedAddresses
from raylaunch_actors.graphs.backend import GraphBackend
from raylaunch_actors.graphs.context import Mode
from raylaunch_actors.graphs.piecewise import PiecewiseGraph

CompilePiece = Callable[[torch.fx.GraphModule], Callable[..., Any]]


class PieceBackend:
    """A Dynamo backend: splits the graph and wraps what lies between two attentions.

    Args:
        graphs: captures the pieces.
        addresses: what they may read in place.
        compile_piece: makes something faster of a piece before it is captured; None leaves it as it is.
        progress: told before each piece is compiled.

    Attributes:
        pieces: in the order in which they run; empty before the compile.
        compiles: how often Dynamo asked; stays 1.
    """

    def __init__(
        self,
        graphs: GraphBackend,
        addresses: FixedAddresses,
        compile_piece: CompilePiece | None = None,
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.pieces: list[PiecewiseGraph] = []
        self.compiles = 0
        self._graphs = graphs
        self._addresses = addresses
        self._compile_piece = compile_piece
        self._progress = progress

    def __call__(self, module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Called by Dynamo. Raises RankFault F20 the second time: new pieces would have no graphs."""
        self.compiles += 1
        if self.compiles > 1:
            raise RankFault("F20", "the model was compiled a second time: its new pieces would have no graphs")
        partition, attentions = cut(module.graph)
        split = split_module(module, None, partition.__getitem__, keep_original_order=True)
        for name, child in list(split.named_children()):
            number = name.removeprefix("submod_")
            if number == name or int(number) in attentions:
                continue
            label = f"piece{len(self.pieces)}"
            run: Callable[..., Any] = child
            if self._compile_piece is not None:
                self._progress(f"compiling {label} of {len(attentions) + 1}")
                run = self._compile_piece(child)
            piece = PiecewiseGraph(run, label, self._graphs, self._addresses)
            self.pieces.append(piece)
            setattr(split, name, piece)
        split.recompile()
        return split


def cut(graph: torch.fx.Graph) -> tuple[dict[torch.fx.Node, int], set[int]]:
    """Numbers the nodes: each attention is a partition of its own. Returns the numbers, and attention's."""
    # a Dynamo backend sees either of them
    attention = (torch.ops.raylaunch.attention, torch.ops.raylaunch.attention.default)
    partition: dict[torch.fx.Node, int] = {}
    attentions: set[int] = set()
    number = 0
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "call_function" and node.target in attention:
            attentions.add(number + 1)
            partition[node] = number + 1
            number += 2
        else:
            partition[node] = number
    return partition, attentions


class CompiledOnce:
    """A module compiled with a :class:`PieceBackend`: the first call, in Mode.TRACE, compiles, no other may.

    Dynamo's settings are touched here only, and only while tracing.
    """

    def __init__(self, module: torch.nn.Module, backend: PieceBackend) -> None:
        self.backend = backend
        self._compiled: Callable[..., Any] = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)

    @property
    def pieces(self) -> Sequence[PiecewiseGraph]:
        """The model's pieces."""
        return self.backend.pieces

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model in the current forward context.

        Raises:
            RankFault: F20 where it would have to be compiled again, with Dynamo's reason (the failed guard).
        """
        if context.current().mode is not Mode.TRACE and not self.backend.compiles:
            raise RuntimeError("the first run of a compiled model is in Mode.TRACE")
        # specialize_float: floats (an epsilon) as constants, else they are tensors read back inside the graph
        with torch._dynamo.config.patch(specialize_float=True, error_on_recompile=self.backend.compiles > 0):
            try:
                return self._compiled(*args, **kwargs)
            except torch._dynamo.exc.RecompileError as error:
                raise RankFault("F20", f"the model would be compiled a second time: {error}") from None
