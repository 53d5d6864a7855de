"""A whole model as one piece: for decode on a GPU, where attention can be part of the graph."""

from __future__ import annotations

from typing import Any

import torch


class WholeModel(torch.nn.Module):
    """Calls a decoder with positional arguments, as a :class:`~actors.graphs.piecewise.PiecewiseGraph` does.

    Args:
        inner: a transformers decoder.
        input_name: ``input_ids`` or ``inputs_embeds``.
    """

    def __init__(self, inner: torch.nn.Module, input_name: str) -> None:
        super().__init__()
        self.inner = inner
        self.input_name = input_name

    def forward(self, inputs: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Hidden states ``[1, rows, hidden]``, in a tuple of one."""
        out: Any = self.inner(**{self.input_name: inputs}, position_ids=positions, use_cache=False)
        return (out[0],)
