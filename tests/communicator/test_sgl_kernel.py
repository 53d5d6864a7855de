"""What of the kernel's all-reduce can be seen without a GPU; the rest is in ``tests/gpu/``."""

from __future__ import annotations

import functools
import sys
from types import SimpleNamespace

import pytest
import torch
from raylaunch_actors.communicator import sgl_kernel
from raylaunch_actors.communicator.cuda_memory import CudaRuntime
from raylaunch_actors.communicator.sgl_kernel import ROW_BYTES, SglKernelAllReduce, table_bytes, table_inputs
from raylaunch_actors.communicator.topology import GpuPlace


def test_messages_beyond_the_staging_buffer_take_a_row_for_each_part():
    communicator = SglKernelAllReduce(0, 2, 4096, "host", table_rows=64)
    assert [communicator.inputs_for(nbytes) for nbytes in (16, 4096, 4112, 12_288)] == [1, 1, 2, 3]
    assert communicator.capacity == 64
    with pytest.raises(RuntimeError, match="offer"):
        communicator.attach([], full_nvlink=True)
    communicator.close()


def test_f17_the_staging_buffers_take_no_row_of_the_recorded_inputs():
    assert table_bytes(64) == 65 * ROW_BYTES
    assert table_inputs(table_bytes(64)) == 64
    assert table_inputs(8 << 20) == 131_071  # SGLang's table


class Device:
    """A CUDA runtime that fails at its n-th call of one name, and knows what is allocated."""

    def __init__(self, name: str, call: int) -> None:
        self.failing, self.left, self.allocated = name, call, []
        for one in ("cudaMalloc", "cudaMemset", "cudaDeviceSynchronize", "cudaFree", "cudaIpcGetMemHandle"):
            setattr(self, one, functools.partial(self.call, one))
        self.cudaGetLastError = lambda: 0
        self.cudaGetErrorString = lambda code: b"out of memory"

    def call(self, name, *arguments):
        if name == self.failing:
            self.left -= 1
            if self.left == 0:
                return 2
        if name == "cudaMalloc":
            arguments[0]._obj.value = 0x1000 * (1 + len(self.allocated))
            self.allocated.append(arguments[0]._obj.value)
        if name == "cudaFree":
            self.allocated.remove(arguments[0].value)
        return 0


@pytest.mark.parametrize(
    ("name", "call"),
    [("cudaMalloc", 1), ("cudaMalloc", 2), ("cudaMemset", 1), ("cudaMemset", 2), ("cudaIpcGetMemHandle", 2)],
)
def test_memory_that_cannot_be_offered_is_given_back(monkeypatch, name, call):
    device = Device(name, call)
    monkeypatch.setitem(sys.modules, "sgl_kernel", SimpleNamespace(allreduce=SimpleNamespace(meta_size=lambda: 64)))
    monkeypatch.setattr(CudaRuntime, "load", lambda: CudaRuntime(device))
    monkeypatch.setattr(sgl_kernel, "require_shareable", lambda runtime: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    communicator = SglKernelAllReduce(0, 2, 4096, "host")
    offer = communicator.offer(GpuPlace("gpu0"))
    assert (offer.shares, offer.reason) == (False, f"{name}: out of memory (CUDA error 2)")
    communicator.close()
    assert device.allocated == []
