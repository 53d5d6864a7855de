"""Attention of one step over the KV cache, by PyTorch's scaled dot product attention, a call for each sequence.

On a GPU, in bfloat16 and float16, every call is a FlashAttention kernel: a whole prompt (square and causal), a chunk
after a cached prefix (causal to the lower right: the last row sees everything) and a single row (nothing to mask).
In float32, and where heads are grouped and the memory-efficient kernel cannot group them, PyTorch falls back to plain
matrix products with a mask. On a CPU a prefix takes a boolean mask, which PyTorch's CPU kernel knows what to do with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from raylaunch.errors import RankFault
from raylaunch.wire import SequencePart
from raylaunch_actors.reference.kv_cache import KVCache


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
        self._attended: set[int] = set()
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

        Raises:
            RankFault: the layer's heads are not those of the cache, or it has attended in this step.
        """
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        real = self._rows.numel()
        if k.shape[1::2] != keys.shape[1:] or v.shape[1::2] != values.shape[1:]:
            held = f"{list(keys.shape[1:])}, by the model's configuration"
            what = f"keys are {list(k.shape[1::2])} and values {list(v.shape[1::2])} (heads, head_dim)"
            raise RankFault(None, f"layer {layer}: {what}; the cache holds {held}")
        if layer in self._attended:
            raise RankFault(None, f"layer {layer} attends twice in a pass, and has one place for keys and values")
        self._attended.add(layer)
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
        """Causal mask of the last ``rows`` of ``length`` tokens."""
        mask = self._masks.get((rows, length))
        if mask is None:
            mask = self._masks[rows, length] = causal_mask(rows, length, self.cache.device)
        return mask


def causal_mask(rows: int, length: int, device: torch.device) -> Tensor:
    """What lets the last ``rows`` of ``length`` tokens look at themselves and at all before them.

    On a GPU it is a :class:`torch.nn.attention.bias.CausalBias`, which only names the pattern, so that a fused kernel
    can be used; else boolean ``[rows, length]``, True where a row may look.
    """
    if device.type == "cuda":
        return causal_lower_right(rows, length)
    return torch.ones(rows, length, dtype=torch.bool, device=device).tril(length - rows)
