"""Attention of one new token per request on a GPU: Triton kernels whose arguments stay where they are.

Everything they read lies in tensors at fixed addresses, so that a whole decode step, attention included, can be one
CUDA graph: a step only fills in which rows of the cache belong to whom. The loop over blocks of keys with a running
maximum is that of FlashAttention (Dao et al., 2022). Few requests would leave most of a GPU idle, so their keys are
divided among several programs whose results are then weighed against each other, as in Flash-Decoding (Dao et al.,
2023); into how many parts depends on the batch size alone, so that eager and replay compute the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from raylaunch.wire import SequencePart
from raylaunch_actors.reference.kv_cache import KVCache

BLOCK_KEYS = 64
LEAST_DOT = 16  # rows and columns that a matrix product in Triton has at least
MOST_PARTS = 32
PROGRAMS_PER_PROCESSOR = 2


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query, keys, values, out, logs, starts, lengths, scale,
    query_head, query_row, cache_row, cache_head, out_part, out_row, out_head, log_part, log_row,
    GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, length = tl.load(starts + row), tl.load(lengths + row)
    share = tl.cdiv(tl.cdiv(length, BLOCK), PARTS) * BLOCK
    end = tl.minimum(length, (part + 1) * share)
    member, column, place = tl.arange(0, GROUP_PADDED), tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK)
    heads = kv_head * GROUP + member
    real = member < GROUP
    q = tl.load(query + heads[:, None] * query_head + row * query_row + column[None, :], mask=real[:, None], other=0.0)
    largest = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PADDED], tl.float32)
    summed = tl.zeros([GROUP_PADDED, HEAD_DIM], tl.float32)
    for first in range(part * share, end, BLOCK):
        inside = (first + place) < end
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
    seen = tl.where(total > 0, total, 1.0)  # a row of padding, or a part beyond the end, has seen nothing
    target = out + part * out_part + row * out_row + heads[:, None] * out_head + column[None, :]
    tl.store(target, (summed / seen[:, None]).to(out.dtype.element_ty), mask=real[:, None])
    if PARTS > 1:
        tl.store(logs + part * log_part + row * log_row + heads, largest + tl.log(seen), mask=real)


@triton.jit
def _join(  # type: ignore[no-untyped-def]
    parts, logs, out, part_part, part_row, part_head, log_part, log_row, out_row, out_head,
    HEAD_DIM: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    part, column = tl.arange(0, PARTS), tl.arange(0, HEAD_DIM)
    log = tl.load(logs + part * log_part + row * log_row + head)
    nothing = log == float("-inf")
    weights = tl.where(nothing, 0.0, tl.exp(log - tl.max(log, 0)))
    each = tl.load(parts + part[:, None] * part_part + row * part_row + head * part_head + column[None, :])
    total = tl.sum(weights, 0)
    result = tl.sum(each * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + row * out_row + head * out_head + column, result.to(out.dtype.element_ty))


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, starts: Tensor, lengths: Tensor, scale: float, parts: int | None = None
) -> Tensor:
    """Each row's query over its own range of the cache.

    Args:
        q: ``[1, heads, rows, head_dim]``, the last dimension contiguous; head_dim a power of two, at least 16.
        keys, values: ``[cache rows, kv_heads, head_dim]``.
        starts, lengths: int32 ``[rows]``: the row's range; a length of 0 gives zeros.
        scale: of the scores.
        parts: into how many parts a row's keys are divided, a power of two; None lets the GPU's size decide.

    Returns:
        ``[1, rows, heads, head_dim]``.
    """
    _, heads, rows, head_dim = q.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    if parts is None:
        parts = parts_for(rows * kv_heads, _processors(q.device.index))
    out = q.new_empty((1, rows, heads, head_dim))
    each = out if parts == 1 else q.new_empty((parts, rows, heads, head_dim), dtype=torch.float32)
    logs = q.new_empty((parts, rows, heads), dtype=torch.float32)
    _attend[(rows, kv_heads, parts)](
        q, keys, values, each, logs, starts, lengths, scale,
        q.stride(1), q.stride(2), keys.stride(0), keys.stride(1), each.stride(0), each.stride(1), each.stride(2),
        logs.stride(0), logs.stride(1),
        GROUP=group, GROUP_PADDED=max(LEAST_DOT, triton.next_power_of_2(group)), HEAD_DIM=head_dim, BLOCK=BLOCK_KEYS,
        PARTS=parts,
    )  # fmt: skip
    if parts > 1:
        _join[(rows, heads)](
            each, logs, out, each.stride(0), each.stride(1), each.stride(2), logs.stride(0), logs.stride(1),
            out.stride(1), out.stride(2), HEAD_DIM=head_dim, PARTS=parts,
        )  # fmt: skip
    return out


def parts_for(programs: int, processors: int) -> int:
    """The least power of two, at most ``MOST_PARTS``, by which ``programs`` programs keep all processors busy."""
    parts = 1
    while parts < MOST_PARTS and programs * parts < processors * PROGRAMS_PER_PROCESSOR:
        parts *= 2
    return parts


@cache
def _processors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


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
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.index_copy_(0, self.targets, k[0].transpose(0, 1))
        values.index_copy_(0, self.targets, v[0].transpose(0, 1))
        return decode_attention(q, keys, values, self.starts, self.lengths, scale)
