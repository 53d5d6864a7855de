"""Messages of any size, cut and padded to what a kernel takes."""

from __future__ import annotations

import pytest
import torch
from raylaunch_actors.communicator.streams import ALIGNMENT, padded, reduce_in_parts


@pytest.mark.parametrize(("dtype", "count", "wanted"), [(torch.float32, 5, 8), (torch.bfloat16, 9, 16)])
def test_inputs_are_padded_with_zeros_to_whole_steps(dtype, count, wanted):
    out = padded(torch.ones(1, count, dtype=dtype))
    assert (out.shape, out.dtype) == ((wanted,), dtype)
    assert out.sum() == count
    assert out.numel() * out.element_size() % ALIGNMENT == 0


@pytest.mark.parametrize("count", [0, 4, 5, 64, 65, 130])
def test_messages_of_any_size_are_reduced_in_parts_that_fit(count):
    seen = []

    def doubled(part):
        seen.append(part.numel() * part.element_size())
        return part * 2

    x = torch.arange(count, dtype=torch.float32).view(1, -1)
    out = reduce_in_parts(x, 256, doubled)
    assert out.shape == x.shape
    assert torch.equal(out, x * 2)
    assert all(0 < nbytes <= 256 and nbytes % ALIGNMENT == 0 for nbytes in seen)
    assert len(seen) == -(-count // 64)
