"""A kernel that writes where it must not: for the fault ``illegal_access``, which shows what debug mode tells."""

from __future__ import annotations

import time

import torch
import triton
import triton.language as tl

NOWHERE = 16  # an address that belongs to nobody
DUMP_S = 60.0


@triton.jit
def _write_to(address):  # type: ignore[no-untyped-def]
    tl.store(address.to(tl.int64).to(tl.pointer_type(tl.int32)), 1)


def write_to_nowhere() -> None:
    """Raises ``RuntimeError``, or ends the process where CUDA writes core dumps. Needs a GPU."""
    _write_to[(1,)](NOWHERE)
    end = time.monotonic() + DUMP_S  # CUDA says nothing while it writes a dump, and ends the process after it
    while time.monotonic() < end:
        torch.cuda.synchronize()
        time.sleep(0.1)
