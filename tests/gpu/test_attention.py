"""Attention kernels on a GPU against plain sums: decode in one part and in several, prefill after a cached prefix."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from raylaunch_actors.reference.attention import AttentionBatch
from raylaunch_actors.reference.kv_cache import KVCache
from torch import Tensor

from raylaunch.wire import SequencePart

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def memory_returns() -> Iterator[None]:
    """In place of the other GPU tests' check: these run in this process, which keeps its CUDA context."""
    yield
    torch.cuda.empty_cache()


def cache_of(kv_heads: int, head_dim: int, dtype: torch.dtype) -> KVCache:
    cache = KVCache(1, 8192, kv_heads, head_dim, dtype, torch.device("cuda"))
    cache.allocate()
    cache.keys[0].normal_()
    cache.values[0].normal_()
    return cache


def plain(q: Tensor, cache: KVCache, start: int, length: int, scale: float) -> Tensor:
    """One query ``[heads, head_dim]`` over rows of the cache, in float32."""
    group = q.shape[0] // cache.kv_heads
    keys, values = (
        one[0][start : start + length].float().transpose(0, 1).repeat_interleave(group, 0)
        for one in (cache.keys, cache.values)
    )
    weights = ((keys @ q.float()[..., None])[..., 0] * scale).softmax(-1)
    return (weights[:, None] @ values)[:, 0]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 8, 128), (28, 4, 128), (4, 2, 32)])
@pytest.mark.parametrize("parts", [None, 1, 4, 32])
def test_decode(dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, parts: int | None) -> None:
    from raylaunch_actors.reference.decode_attention import decode_attention

    cache = cache_of(kv_heads, head_dim, dtype)
    ranges = [(0, 1), (100, 64), (200, 65), (300, 1000), (2000, 5000), (0, 0)]
    starts, lengths = (torch.tensor(list(one), dtype=torch.int32, device="cuda") for one in zip(*ranges, strict=True))
    q = torch.randn(1, heads, len(ranges), head_dim, dtype=dtype, device="cuda")
    out = decode_attention(q, cache.keys[0], cache.values[0], starts, lengths, head_dim**-0.5, parts)
    for row, (start, length) in enumerate(ranges):
        expected = plain(q[0, :, row], cache, start, length, head_dim**-0.5) if length else torch.zeros_like(q[0, :, 0])
        torch.testing.assert_close(out[0, row].float(), expected.float(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("rows", "past"), [(300, 0), (300, 700), (1, 700), (32, 5000)])
def test_prefill(dtype: torch.dtype, rows: int, past: int) -> None:
    cache = cache_of(4, 128, dtype)
    q, k, v = (torch.randn(1, heads, rows + 3, 128, dtype=dtype, device="cuda") for heads in (28, 4, 4))
    out = AttentionBatch(cache, [SequencePart(0, rows, 100, past, True)]).attend(q, k, v, 128**-0.5, 0)
    for row in {0, rows // 2, rows - 1}:
        expected = plain(q[0, :, row], cache, 100, past + row + 1, 128**-0.5)
        torch.testing.assert_close(out[0, row].float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert not out[0, rows:].any()


def test_a_cached_prefix_needs_no_mask_in_memory() -> None:
    """FlashAttention is used: 1,000 rows after 7,000 in 28 heads would take 850 MiB of scores and more."""
    cache = cache_of(4, 128, torch.bfloat16)
    q, k, v = (torch.randn(1, heads, 1000, 128, dtype=torch.bfloat16, device="cuda") for heads in (28, 4, 4))
    batch = AttentionBatch(cache, [SequencePart(0, 1000, 0, 7000, True)])
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    batch.attend(q, k, v, 128**-0.5, 0)
    assert torch.cuda.max_memory_allocated() - before < 128 << 20
