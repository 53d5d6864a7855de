"""Compiles a piece with inductor, once for all sizes, before it is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from raylaunch.errors import RankFault

OPTIONS = {
    "triton.cudagraphs": False,  # the graphs are ours
    "emulate_precision_casts": True,  # rounds where eager does, so that VERIFY can hold one against the other
    "deterministic": True,  # each rank would time kernels for itself, and two may choose sums of other orders (F12)
}


def compile_piece(piece: torch.fx.GraphModule) -> Callable[..., Any]:
    """The piece as compiled kernels; custom ops in it, such as all-reduces, stay calls.

    To be called inside a Dynamo backend, whose symbolic sizes it takes over: one compilation serves every token count.

    Raises:
        RankFault: F11 if Dynamo's values of the piece's arguments were lost.
    """
    arguments = piece.graph.find_nodes(op="placeholder")
    lost = [node.name for node in arguments if "example_value" not in node.meta]
    if lost:
        raise RankFault("F11", f"a piece cannot be compiled: the sizes of its argument {lost[0]} are not known")
    compiled: Callable[..., Any] = torch._inductor.standalone_compile(
        piece,
        [node.meta["example_value"] for node in arguments],
        dynamic_shapes="from_tracing_context",
        options={"config_patches": OPTIONS},
    )
    return compiled
