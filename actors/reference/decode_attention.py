"""Attention of one new token per request on a GPU: a Triton kernel whose arguments stay where they are.

Everything it reads lies in tensors at fixed addresses, so that a whole decode step, attention included, can be one
CUDA graph: a step only fills in which rows of the cache belong to whom. The loop over blocks of keys with a running
maximum is that of FlashAttention (Dao et al., 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from actors.reference.kv_cache import KVCache
from raylaunch.wire import SequencePart

BLOCK_KEYS = 64
LEAST_DOT = 16  # rows and columns that a matrix product in Triton has at least


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query, keys, values, out, starts, lengths, scale,
    query_head, query_row, cache_row, cache_head, out_row, out_head,
    GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, kv_head = tl.program_id(0), tl.program_id(1)
    start, length = tl.load(starts + row), tl.load(lengths + row)
    member, column, place = tl.arange(0, GROUP_PADDED), tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK)
    heads = kv_head * GROUP + member
    real = (member < GROUP)[:, None]
    q = tl.load(query + heads[:, None] * query_head + row * query_row + column[None, :], mask=real, other=0.0)
    largest = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PADDED], tl.float32)
    summed = tl.zeros([GROUP_PADDED, HEAD_DIM], tl.float32)
    for first in range(0, length, BLOCK):
        inside = (first + place) < length
        where = (start + first + place)[:, None].to(tl.int64) * cache_row + kv_head * cache_head + column[None, :]
        k = tl.load(keys + where, mask=inside[:, None], other=0.0)
        v = tl.load(values + where, mask=inside[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - larger[:, None])
        shrink = tl.exp(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        summed = summed * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        largest = larger
    result = tl.where(length > 0, summed / tl.where(total > 0, total, 1.0)[:, None], 0.0)
    target = out + row * out_row + heads[:, None] * out_head + column[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=real)


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, starts: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Each row's query over its own range of the cache.

    Args:
        q: ``[1, heads, rows, head_dim]``, the last dimension contiguous; head_dim a power of two, at least 16.
        keys, values: ``[cache rows, kv_heads, head_dim]``.
        starts, lengths: int32 ``[rows]``: the row's range; a length of 0 gives zeros.
        scale: of the scores.

    Returns:
        ``[1, rows, heads, head_dim]``.
    """
    _, heads, rows, head_dim = q.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    out = q.new_empty((1, rows, heads, head_dim))
    _attend[(rows, kv_heads)](
        q, keys, values, out, starts, lengths, scale,
        q.stride(1), q.stride(2), keys.stride(0), keys.stride(1), out.stride(1), out.stride(2),
        GROUP=group, GROUP_PADDED=max(LEAST_DOT, triton.next_power_of_2(group)), HEAD_DIM=head_dim, BLOCK=BLOCK_KEYS,
    )  # fmt: skip
    return out


def supported(head_dim: int) -> bool:
    """Whether the kernel takes heads of this size."""
    return head_dim >= LEAST_DOT and head_dim & (head_dim - 1) == 0


class StaticDecodeBatch:
    """What a decode step of one batch size needs to know, in tensors at addresses that stay.

    Args:
        cache: the rank's KV cache; padding rows write into its spare row.
        rows: the batch size that steps are padded to.
    """

    def __init__(self, cache: KVCache, rows: int) -> None:
        self.cache, self.rows = cache, rows
        device = cache.device
        self.targets = torch.full((rows,), cache.spare_row, dtype=torch.long, device=device)
        self.starts = torch.zeros(rows, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=device)

    def fill(self, sequences: Sequence[SequencePart]) -> None:
        """Sets the step's requests, one row each; the other rows become padding."""
        padding = self.rows - len(sequences)
        starts = [part.kv_start for part in sequences] + [0] * padding
        lengths = [part.kv_length + 1 for part in sequences] + [0] * padding
        targets = [part.kv_start + part.kv_length for part in sequences] + [self.cache.spare_row] * padding
        self.starts.copy_(torch.tensor(starts, dtype=torch.int32))
        self.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        self.targets.copy_(torch.tensor(targets, dtype=torch.long))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, layer: int) -> Tensor:
        """See :meth:`actors.reference.attention.AttentionBatch.attend`."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.index_copy_(0, self.targets, k[0].transpose(0, 1))
        values.index_copy_(0, self.targets, v[0].transpose(0, 1))
        return decode_attention(q, keys, values, self.starts, self.lengths, scale)
