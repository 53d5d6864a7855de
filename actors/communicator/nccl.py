"""All-reduce by NCCL: the fallback on GPUs that cannot read each other's memory, and across nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from actors.communicator.base import require_capture
from actors.communicator.parts import NothingToRegister
from actors.communicator.sgl_kernel import GpuCall


class NcclAllReduce(NothingToRegister):
    """See :class:`actors.communicator.base.Communicator`; nothing has to be registered.

    Args:
        store: the rendezvous, of a group that every rank joins.
        deadline_s: seconds that a collective may take before NCCL's watchdog ends the process.
    """

    kind = "nccl"

    def __init__(self, store: dist.Store, rank: int, world_size: int, deadline_s: float) -> None:
        self.rank, self.world_size, self.max_bytes = rank, world_size, 0
        self._store, self._deadline_s = store, deadline_s
        self._group: dist.ProcessGroupNCCL | None = None

    def open(self) -> None:
        """Connects to the peers by a first all-reduce, which must not happen while a stream captures."""
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=self._deadline_s)
        self._group = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", self._store), self.rank, self.world_size, options)
        self.all_reduce(torch.zeros(1, device="cuda"))
        torch.cuda.synchronize()

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Communicator.all_reduce`."""
        if self._group is None:
            raise RuntimeError("open() comes first")
        out = x.clone(memory_format=torch.contiguous_format)
        if torch.cuda.is_current_stream_capturing():
            require_capture(self, "an all-reduce")
        self._group.allreduce([out]).wait()
        return out

    @contextlib.contextmanager
    def recording(self, round: str, shape: int, piece: str) -> Iterator[list[GpuCall]]:
        """Nothing is recorded: a graph holds NCCL's own kernels."""
        yield []

    def input_memory(self, nbytes: int) -> torch.Tensor:
        """Memory of torch's allocator."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cuda")

    def abort(self) -> None:
        """Ends waits of this rank's collectives."""
        if self._group is not None:
            self._group.abort()

    def close(self) -> None:
        """Leaves the group."""
        group, self._group = self._group, None
        if group is not None:
            torch.cuda.synchronize()
            group.shutdown()
