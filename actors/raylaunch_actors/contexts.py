"""Whether this process has opened a CUDA context, as the driver's library knows it; asks nothing that opens one."""

from __future__ import annotations

import contextlib
import ctypes


def open_contexts() -> list[int]:
    """Indices, among the visible ones, of the GPUs on which this process has a primary context: what torch, CUDA's
    runtime and most libraries use, hundreds of MiB each. None where there is no CUDA driver, or nobody has called it.
    """
    found: list[int] = []
    with contextlib.suppress(OSError):
        driver = ctypes.CDLL("libcuda.so.1")
        flags, active, index = ctypes.c_uint(), ctypes.c_int(), 0
        while driver.cuDevicePrimaryCtxGetState(index, ctypes.byref(flags), ctypes.byref(active)) == 0:
            found += [index] if active.value else []
            index += 1
    return found
