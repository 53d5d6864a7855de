"""All-reduce by NCCL: on GPUs that cannot read each other's memory, across nodes, and for large messages.

In graphs: torch's process group keeps no work of a capturing stream for its watchdog, and queries events of earlier
work from a thread of its own, which a capture in mode ``thread_local`` does not mind. The collective runs on the
capturing stream itself (``asyncOp`` is False), so no second stream joins the graph.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from raylaunch.errors import RankFault
from raylaunch_actors.communicator.base import require_capture
from raylaunch_actors.communicator.process_group import opened_alike
from raylaunch_actors.communicator.streams import NothingRecorded


class NcclAllReduce(NothingRecorded):
    """All-reduces of NCCL, for which nothing has to be registered.

    Args:
        store: the rendezvous, of a group that every rank joins.
        deadline_s: seconds that a collective may take before NCCL's watchdog ends the process.
        open_s: seconds that the first one may take.
    """

    kind = "nccl"

    def __init__(self, store: dist.Store, rank: int, world_size: int, deadline_s: float, open_s: float) -> None:
        self.rank, self.world_size, self.max_bytes = rank, world_size, 0
        self._store, self._deadline, self._open_s = store, timedelta(seconds=deadline_s), open_s
        self._group: dist.ProcessGroupNCCL | None = None
        self._in_graphs = False

    def open(self) -> None:
        """Connects to the peers by a first all-reduce, which must not happen while a stream captures.

        Raises NotOpened, on every rank, if NCCL does not connect them in time.
        """
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = self._deadline
        store, problem, group = dist.PrefixStore("nccl", self._store), "", None
        try:
            group = dist.ProcessGroupNCCL(store, self.rank, self.world_size, options)
            group.allreduce([torch.zeros(1, device="cuda")]).wait(timedelta(seconds=self._open_s))
            torch.cuda.synchronize()
        except RuntimeError as error:
            problem = f"NCCL does not connect: {error}"
        try:
            opened_alike(store, self.rank, self.world_size, problem, self._open_s)
        except RankFault:
            if group is not None:  # its watchdog would end a process that does without it
                group.abort()
            raise
        self._group = group

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return self.reduce_in_place(x.clone(memory_format=torch.contiguous_format))

    def reduce_in_place(self, x: torch.Tensor) -> torch.Tensor:
        """The ranks' sum in x itself, which must be contiguous: what NCCL does when nobody needs the input any more."""
        if self._group is None:
            raise RuntimeError("open() comes first")
        if torch.cuda.is_current_stream_capturing():
            require_capture(self, "an all-reduce")
            self._in_graphs = True
        options = dist.AllreduceOptions()
        options.asyncOp = False
        work = self._group.allreduce([x], options)
        if work is not None:
            work.wait()
        return x

    def abort(self) -> None:
        """Ends waits of this rank's collectives; those in graphs end with the process, see :meth:`close`."""
        if self._group is not None and not self._in_graphs:
            self._group.abort()

    def close(self) -> None:
        """Leaves the group. Where graphs hold its kernels, the process's end does: NCCL waits for the last of them,
        which may outlive this call (pytorch#115388)."""
        if self._group is not None and not self._in_graphs:
            torch.cuda.synchronize()
            self._group.shutdown()
            self._group = None
