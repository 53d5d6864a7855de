"""The keys and values of all running requests, one pair of tensors a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from raylaunch.errors import RankFault
from raylaunch_actors.shortage import chain_of, shortage_of


class KVCache:
    """Storage for keys and values: per layer ``[capacity + 1, kv_heads, head_dim]`` each.

    Rows are addressed directly; who owns which rows is the scheduler's business (:mod:`.rows`).

    Args:
        layers: attention layers of the model.
        capacity: rows (tokens) for all requests together.
        kv_heads: key/value heads on this rank.
        head_dim: elements a head.
        dtype: of the model's activations.
        device: where the rows live.
    """

    def __init__(
        self,
        layers: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layers, self.capacity = layers, capacity
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.dtype, self.device = dtype, device
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    @property
    def spare_row(self) -> int:
        """A row that no request owns: padding may be written there."""
        return self.capacity

    @property
    def bytes_per_token(self) -> int:
        """Bytes one token takes on this rank, over all layers."""
        return bytes_per_token(self.layers, self.kv_heads, self.head_dim, self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows on this rank."""
        return (self.capacity + 1) * self.bytes_per_token

    def allocate(self) -> None:
        """Allocates the tensors. Raises RankFault, with the sizes, if the device has not enough memory."""
        shape = (self.capacity + 1, self.kv_heads, self.head_dim)
        try:
            for _ in range(self.layers):
                self.keys.append(torch.zeros(shape, dtype=self.dtype, device=self.device))
                self.values.append(torch.zeros(shape, dtype=self.dtype, device=self.device))
        except RuntimeError as error:  # torch reports exhausted memory so, on CPU and on CUDA
            self.keys.clear()
            self.values.clear()
            if shortage_of(tuple(chain_of(error))) is None:
                raise
            mebibytes = self.capacity * self.bytes_per_token / 2**20
            raise RankFault(
                None,
                f"the KV cache needs {mebibytes:.0f} MiB on {self.device} ({self.capacity} tokens of "
                f"{self.bytes_per_token} bytes) and could not be allocated: {error}",
            ) from error


def bytes_per_token(layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token, over all ``layers``."""
    return 2 * layers * kv_heads * head_dim * dtype.itemsize
