"""Attention of one step over the KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from actors.reference.kv_cache import KVCache
from raylaunch.wire import SequencePart


class AttentionBatch:
    """What the ``raylaunch::attention`` op needs to know of a step; made anew for each.

    Args:
        cache: the rank's KV cache.
        sequences: the requests' parts of the packed rows.
    """

    def __init__(self, cache: KVCache, sequences: Sequence[SequencePart]) -> None:
        self.cache, self.sequences = cache, sequences
        rows = [row for s in sequences for row in range(s.kv_start + s.kv_length, s.kv_start + s.kv_length + s.rows)]
        self._rows = torch.tensor(rows, dtype=torch.long, device=cache.device)
        self._masks: dict[tuple[int, int], Tensor] = {}  # the same in every layer

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, layer: int) -> Tensor:
        """Writes the new keys and values and attends.

        Args:
            q: ``[1, heads, T, head_dim]``, T rows of which the first ones are real and the others padding.
            k, v: ``[1, kv_heads, T, head_dim]``.
            scale: of the scores.
            layer: index of the layer.

        Returns:
            ``[1, T, heads, head_dim]``; padding rows are zero.
        """
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        real = self._rows.numel()
        keys.index_copy_(0, self._rows, k[0, :, :real].transpose(0, 1))
        values.index_copy_(0, self._rows, v[0, :, :real].transpose(0, 1))
        out = q.new_zeros((1, q.shape[2], q.shape[1], q.shape[3]))
        for part in self.sequences:
            stop, length = part.start + part.rows, part.kv_length + part.rows
            own = slice(part.kv_start, part.kv_start + length)
            mask = self._mask(part.rows, length) if part.kv_length and part.rows > 1 else None
            attended = F.scaled_dot_product_attention(
                q[:, :, part.start : stop],
                keys[own].transpose(0, 1)[None],
                values[own].transpose(0, 1)[None],
                attn_mask=mask,
                is_causal=part.kv_length == 0 and part.rows > 1,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            out[:, part.start : stop] = attended.transpose(1, 2)
        return out

    def _mask(self, rows: int, length: int) -> Tensor:
        """Causal mask of the last ``rows`` of ``length`` tokens: True where a row may look."""
        mask = self._masks.get((rows, length))
        if mask is None:
            mask = torch.ones(rows, length, dtype=torch.bool, device=self.cache.device).tril(length - rows)
            self._masks[rows, length] = mask
        return mask
