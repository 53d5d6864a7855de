"""What of the kernel's all-reduce can be seen without a GPU; the rest is in ``tests/gpu/``."""

from __future__ import annotations

import pytest

from actors.communicator.sgl_kernel import ROW_BYTES, SglKernelAllReduce, table_bytes, table_inputs


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
