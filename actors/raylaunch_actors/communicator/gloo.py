"""All-reduce on a gloo process group: the fallback that works across nodes and without shared memory.

It gathers and adds up in the order of ranks, as the shared-memory one does: same bits, on all ranks and in
both.
"""

from __future__ import annotations

import contextlib
import os
import time

import torch
import torch.distributed as dist

from raylaunch.errors import CollectiveAborted, RankFault
from raylaunch_actors.communicator.base import CallLabel, require_capture
from raylaunch_actors.communicator.parts import NothingToRegister
from raylaunch_actors.communicator.process_group import JoinedGroup

ABORT_KEY = "aborted-by"
YIELD_FOR_S = 0.002
SLEEP_S = 0.0005
LOOK_AT_STORE_EVERY_S = 0.1


class GlooCall:
    """A recorded all-reduce that runs the collective at every replay."""

    registered = True
    needs_peers = False

    def __init__(self, owner: GlooAllReduce, x: torch.Tensor, out: torch.Tensor, label: CallLabel) -> None:
        self.label = label
        self._owner = owner
        self._x = x
        self._out = out

    def run(self) -> None:
        """Reduces into the output."""
        self._owner.reduce_into(self._x, self._out)


class GlooAllReduce(NothingToRegister):
    """All-reduces through gloo, on a CPU.

    Args:
        joined: this rank's membership, its own from here on.
        max_bytes: larger inputs are reduced in chunks.
        deadline_s: seconds that a collective may take.
    """

    kind = "gloo"

    def __init__(self, joined: JoinedGroup, max_bytes: int, deadline_s: float) -> None:
        self.rank = joined.rank
        self.world_size = joined.world_size
        self.max_bytes = max_bytes
        self.deadline_s = deadline_s
        self._joined = joined
        self._aborted = False
        self._sequence = 0

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Real inside of `capture()` too."""
        x = x.contiguous()
        out = torch.empty_like(x)
        self.reduce_into(x, out)
        return out

    def reduce_into(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """out = the ranks' sum; both contiguous and of one shape and dtype."""
        step = max(self.max_bytes // x.element_size(), 1)
        for source, target in zip(x.view(-1).split(step), out.view(-1).split(step), strict=True):
            if source.numel():
                self._reduce_chunk(source, target)

    def _reduce_chunk(self, x: torch.Tensor, out: torch.Tensor) -> None:
        group = self._joined.group
        if group is None:
            raise RuntimeError(f"rank {self.rank}: the process group is closed")
        self._sequence += 1
        self._raise_if_aborted()
        parts = [torch.empty_like(x) for _ in range(self.world_size)]
        try:
            work = group.allgather([parts], [x])
            self._wait(work)
        except RuntimeError as error:
            if isinstance(error, RankFault):
                raise
            raise CollectiveAborted(
                None, f"rank {self.rank}: all-reduce #{self._sequence} over gloo failed: {error}"
            ) from error
        if self.world_size == 1:
            out.copy_(parts[0])
            return
        torch.add(parts[0], parts[1], out=out)
        for part in parts[2:]:
            out.add_(part)

    def _wait(self, work: dist.Work) -> None:
        start = time.monotonic()
        look_at = start + LOOK_AT_STORE_EVERY_S
        while not work.is_completed():
            now = time.monotonic()
            if now - start < YIELD_FOR_S:
                os.sched_yield()
                continue
            if self._aborted or now > look_at:
                self._raise_if_aborted(look=True)
                look_at = now + LOOK_AT_STORE_EVERY_S
            if now - start > self.deadline_s:
                raise CollectiveAborted(
                    None,
                    f"rank {self.rank}: all-reduce #{self._sequence} over gloo did not end within "
                    f"{self.deadline_s:g} s: at least one peer has not come",
                )
            time.sleep(SLEEP_S)
        work.wait()  # raises what went wrong

    def _raise_if_aborted(self, look: bool = False) -> None:
        who = "this rank" if self._aborted else ""
        store = self._joined.store
        if not who and look and store is not None and store.check([ABORT_KEY]):
            who = f"rank {store.get(ABORT_KEY).decode()}"
        if who:
            raise CollectiveAborted(None, f"rank {self.rank}: {who} aborted (at all-reduce #{self._sequence})")

    def abort(self) -> None:
        """Ends the waits of all ranks with CollectiveAborted; peers look at the store ten times a second."""
        self._aborted = True
        store = self._joined.store
        if store is not None:
            with contextlib.suppress(RuntimeError):  # the store's rank may be dead already
                store.set(ABORT_KEY, str(self.rank))

    def input_memory(self, nbytes: int) -> torch.Tensor:
        """Ordinary memory: gloo copies."""
        with torch.inference_mode(False):
            return torch.empty(nbytes, dtype=torch.uint8)

    def record(self, x: torch.Tensor, out: torch.Tensor, label: CallLabel) -> GlooCall:
        require_capture(self, str(label))
        return GlooCall(self, x, out, label)

    def close(self) -> None:
        """Leaves the group."""
        self._joined.close()
