"""Addresses that stay: what a graph may read in place instead of having it copied in."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.utils._pytree import tree_leaves


class FixedAddresses:
    """Names of the tensors that stay where they are: parameters, buffers, inputs, outputs of graphs."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Promises that `tensor` stays at its address."""
        if tensor.numel():
            self._names.setdefault(tensor.data_ptr(), name)

    def add_module(self, module: torch.nn.Module, prefix: str = "") -> None:
        """Promises it for all parameters and buffers of a module."""
        named: Iterable[tuple[str, torch.Tensor]] = (*module.named_parameters(), *module.named_buffers())
        for name, tensor in named:
            self.add(prefix + name, tensor)

    def add_outputs(self, name: str, outputs: object) -> None:
        """Promises it for the outputs of a graph; the next piece then reads them without a copy."""
        for index, leaf in enumerate(tree_leaves(outputs)):
            if isinstance(leaf, torch.Tensor):
                self.add(f"{name} output {index}", leaf)

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """The name of what begins at the tensor's address, or None if nothing was promised."""
        return self._names.get(tensor.data_ptr()) if tensor.numel() else None
