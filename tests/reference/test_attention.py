"""Attention over the cache: the mask that a GPU is given means what the CPU's does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from raylaunch_actors.reference.attention import AttentionBatch, causal_mask
from raylaunch_actors.reference.kv_cache import KVCache

from raylaunch.wire import SequencePart

CPU = torch.device("cpu")


@pytest.mark.parametrize(("rows", "length"), [(1, 5), (3, 4), (7, 40)])
def test_a_gpus_mask_is_the_cpus(rows, length):
    q, k, v = (torch.randn(1, heads, size, 16) for heads, size in ((4, rows), (2, length), (2, length)))
    named = causal_mask(rows, length, torch.device("cuda"))
    attended = [
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=False, scale=0.3, enable_gqa=True)
        for mask in (named, causal_mask(rows, length, CPU))
    ]
    assert torch.equal(*attended)


def test_every_row_sees_its_own_past_and_nothing_else():
    cache = KVCache(1, 64, 2, 8, torch.float32, CPU)
    cache.allocate()
    cache.keys[0].normal_()
    cache.values[0].normal_()
    parts = [SequencePart(0, 5, 0, 0, True), SequencePart(5, 3, 20, 9, True), SequencePart(8, 1, 40, 4, True)]
    q, k, v = torch.randn(1, 4, 12, 8), torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8)
    out = AttentionBatch(cache, parts).attend(q, k, v, 0.5, 0)
    for part in parts:
        for row in range(part.rows):
            seen = slice(part.kv_start, part.kv_start + part.kv_length + row + 1)
            keys, values = (one[0][seen].transpose(0, 1).repeat_interleave(2, 0) for one in (cache.keys, cache.values))
            scores = (q[0, :, part.start + row, None] * keys).sum(-1) * 0.5
            expected = (scores.softmax(-1)[..., None] * values).sum(1)
            torch.testing.assert_close(out[0, part.start + row], expected)
    assert not out[0, 9:].any()
