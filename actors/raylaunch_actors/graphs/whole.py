"""A whole model as one piece: for decode on a GPU, where attention can be part of the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from raylaunch_actors.graphs import context
from raylaunch_actors.graphs.context import Mode


class WholeModel(torch.nn.Module):
    """Calls a decoder with positional arguments, as a :class:`~raylaunch_actors.graphs.piecewise.PiecewiseGraph` does.

    Args:
        inner: a transformers decoder, or one that was compiled into pieces.
        input_name: ``input_ids`` or ``inputs_embeds``.
    """

    def __init__(self, inner: Callable[..., Any], input_name: str) -> None:
        super().__init__()
        self.inner = inner
        self.input_name = input_name

    def forward(self, inputs: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Hidden states ``[1, rows, hidden]``, in a tuple of one."""
        # It is captured as a whole: pieces inside must not capture themselves as well.
        with context.use(dataclasses.replace(context.current(), mode=Mode.EAGER)):
            out: Any = self.inner(**{self.input_name: inputs}, position_ids=positions, use_cache=False)
        return (out[0],)
