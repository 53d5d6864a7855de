"""What of the kernel's all-reduce can be seen without a GPU; the rest is in ``tests/gpu/``."""

from __future__ import annotations

import pytest
import torch

from actors.communicator.sgl_kernel import SglKernelAllReduce
from actors.communicator.streams import ALIGNMENT, padded, reduce_in_parts


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


def test_messages_beyond_the_staging_buffer_take_a_row_for_each_part():
    communicator = SglKernelAllReduce(0, 2, 4096, "host", table_rows=64)
    assert [communicator.inputs_for(nbytes) for nbytes in (16, 4096, 4112, 12_288)] == [1, 1, 2, 3]
    assert communicator.capacity == 64
    with pytest.raises(RuntimeError, match="offer"):
        communicator.attach([], full_nvlink=True)
    communicator.close()
