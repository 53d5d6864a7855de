"""A kernel that writes where it must not: for the fault ``illegal_access``, which shows what debug mode tells."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

NOWHERE = 16  # an address that belongs to nobody


@triton.jit
def _write_to(address):  # type: ignore[no-untyped-def]
    tl.store(address.to(tl.int64).to(tl.pointer_type(tl.int32)), 1)


def write_to_nowhere() -> None:
    """Raises ``RuntimeError``, or ends the process where CUDA writes core dumps. Needs a GPU."""
    _write_to[(1,)](NOWHERE)
    torch.cuda.synchronize()
