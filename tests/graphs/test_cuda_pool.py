"""Static inputs of CUDA graphs; where the memory lies does not matter here, so it is a CPU's."""

from __future__ import annotations

import torch
from raylaunch_actors.graphs.cuda import CudaPool


def test_smaller_shapes_lie_at_the_beginning_of_larger_ones():
    pool = CudaPool(torch.device("cpu"))
    large = pool.static_inputs([torch.ones(1, 8, 4), torch.ones(1, 8, dtype=torch.long), torch.ones(1, 8, 4)])
    small = pool.static_inputs([torch.ones(1, 2, 4), torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2, 4)])
    assert [one.data_ptr() for one in small] == [one.data_ptr() for one in large]
    assert [tuple(one.shape) for one in small] == [(1, 2, 4), (1, 2), (1, 2, 4)]
    assert all(one.is_contiguous() for one in (*large, *small))
    assert len({one.data_ptr() for one in large}) == 3  # inputs of one graph never overlap


def test_what_does_not_fit_gets_memory_of_its_own():
    pool = CudaPool(torch.device("cpu"))
    (small,) = pool.static_inputs([torch.ones(2)])
    (large,) = pool.static_inputs([torch.ones(4)])
    (other,) = pool.static_inputs([torch.ones(2, dtype=torch.bfloat16)])
    assert len({one.data_ptr() for one in (small, large, other)}) == 3


def test_poison_reaches_every_floating_point_input():
    pool = CudaPool(torch.device("cpu"))
    numbers, ids = pool.static_inputs([torch.ones(3), torch.ones(3, dtype=torch.long)])
    ids.fill_(7)
    pool.poison()
    assert numbers.isnan().all()
    assert ids.eq(7).all()
