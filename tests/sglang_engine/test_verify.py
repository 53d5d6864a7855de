"""The digest by which ranks compare what their graphs computed."""

from __future__ import annotations

import pytest
import torch

from actors.sglang_engine import verify


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_bits_have_equal_digests_and_others_do_not(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 300, generator=generator).to(dtype)
    digest = verify.digest(x)
    assert digest == verify.digest(x.clone())
    assert len(digest) == 16
    changed = x.clone()
    changed[63, 299] = torch.nextafter(x[63, 299].float(), torch.tensor(9.0)).to(dtype) if dtype == torch.float32 else 9
    assert verify.digest(changed) != digest
    assert verify.digest(x.flip(0)) != digest, "places count"
    assert verify.digest(-x) != digest


def test_parts_add_up(monkeypatch):
    x = torch.randn(7, 100)
    whole = verify.digest(x)
    monkeypatch.setattr(verify, "WORDS_AT_ONCE", 33)
    assert verify.digest(x) == whole


def test_zeros_of_other_sizes_differ():
    assert verify.digest(torch.zeros(3)) != verify.digest(torch.zeros(4))


def test_the_tolerance_grows_with_the_values_and_the_dtype():
    x = torch.tensor([[1.0, -8.0]])
    assert verify.tolerance(x, torch.float32) == pytest.approx(16 * 8 * torch.finfo(torch.float32).eps)
    assert verify.tolerance(x, torch.bfloat16) > verify.tolerance(x, torch.float32)


@pytest.mark.parametrize(
    ("shape", "page", "last", "context", "longest"),
    [
        (8, 1, 4096, 4096, 200),
        (8, 64, 4096, 4096, 192),
        (8, 1, 4096, 30, 29),
        (8, 1, 25, 4096, 8),
        (8, 16, 300, 4096, 16),
        (8, 1, 17, 4096, 0),
    ],
)
def test_decoded_tokens_have_rows_of_their_own_after_whole_pages(shape, page, last, context, longest):
    first = max(1, page)
    turns = [verify.decode_rows(shape, page, first, last, context, again=again) for again in (False, True)]
    for prefix, lengths, new in turns:
        assert prefix == max(lengths) == longest
        assert max(lengths) < context
        assert all(length % page == 0 for length in lengths)
        assert len(set(lengths)) == min(shape, longest // page // 2 + 1)
        assert min(new) >= first + prefix
        assert max(new) < last
        assert all((row - first) % page == 0 for row in new)
    assert turns[0][:2] == turns[1][:2]
    assert len({*turns[0][2], *turns[1][2]}) == 2 * shape, "the replay cannot find what eager has written"


def test_a_cache_without_room_takes_new_tokens_alone():
    assert verify.decode_rows(8, 1, 1, 6, 100, again=True) == (0, [0] * 8, [1, 2, 3, 4, 5, 1, 2, 3])
