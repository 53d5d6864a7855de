"""The digest by which ranks compare what their graphs computed."""

from __future__ import annotations

import pytest
import torch
from raylaunch_actors.sglang_engine import verify


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
