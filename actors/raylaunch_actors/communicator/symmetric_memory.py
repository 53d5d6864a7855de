"""All-reduce through PyTorch's symmetric memory: the one file that knows ``torch.distributed._symmetric_memory``.

Each rank copies its input into a buffer that all ranks have mapped; a kernel then reads the peers' buffers, all of
them (one shot) or a share of each, which is passed on (two shots). NVLink multicast is never used: no such operation is
called, and ranks are started with TORCH_SYMM_MEM_DISABLE_MULTICAST=1. The buffers stay where they are, so that graphs
need no registration. Written against torch 2.11 and 2.13, whose interface is not stable: since 2.11 it asks for a
process group that is registered (pytorch#172163). It has worked on two and on four GPUs.
"""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist

from raylaunch.errors import RankFault
from raylaunch_actors.communicator.base import require_capture
from raylaunch_actors.communicator.process_group import opened_alike
from raylaunch_actors.communicator.streams import NothingRecorded, reduce_in_parts

OPERATIONS = {"symmetric-one-shot": "one_shot_all_reduce", "symmetric-two-shot": "two_shot_all_reduce_"}


def missing_support() -> str:
    """Why this build of torch cannot do it, or ""."""
    try:
        from torch._C._distributed_c10d import FakeProcessGroup, _register_process_group, _SymmetricMemory  # noqa: F401

        FakeProcessGroup._create_internal  # noqa: B018
        for name in ("set_group_info", "empty_strided_p2p", "rendezvous"):
            getattr(_SymmetricMemory, name)
        for name in OPERATIONS.values():
            getattr(torch.ops.symm_mem, name)
    except (ImportError, AttributeError) as error:
        return f"torch {torch.__version__} has no symmetric memory: {error}"
    return ""


class SymmetricMemoryAllReduce(NothingRecorded):
    """PyTorch's kernels over a buffer that all ranks have mapped.

    Args:
        kind: ``symmetric-one-shot`` or ``symmetric-two-shot``.
        store: the rendezvous, of a group that every rank joins.
        max_bytes: size of the buffer; larger inputs are reduced in parts.
        open_s: seconds that a peer may take to map them.
    """

    def __init__(self, kind: str, store: dist.Store, rank: int, world_size: int, max_bytes: int, open_s: float) -> None:
        self.kind, self.rank, self.world_size, self.max_bytes = kind, rank, world_size, max_bytes
        self._store, self._open_s = store, open_s
        self._group = f"raylaunch-{kind}"
        self._buffer: torch.Tensor | None = None
        self._registered: dist.ProcessGroup | None = None

    def open(self) -> None:
        """Maps the peers' buffers and reduces once; every rank has to call it.

        Raises NotOpened, on every rank, if torch cannot.
        """
        from torch._C._distributed_c10d import _SymmetricMemory

        store, problem = dist.PrefixStore(self._group, self._store), ""
        try:
            self._registered = register_group(self._group, store, self.rank, self.world_size)
            device = torch.device("cuda", torch.cuda.current_device())
            buffer = _SymmetricMemory.empty_strided_p2p((self.max_bytes,), (1,), torch.uint8, device, None)
            _SymmetricMemory.rendezvous(buffer, self._group)
            self._buffer = buffer
            self.all_reduce(torch.zeros(1, device=device))
            torch.cuda.synchronize()
        except (RuntimeError, TypeError) as error:
            problem = f"symmetric memory cannot be set up: {error}"
        try:
            opened_alike(store, self.rank, self.world_size, problem, self._open_s)
        except RankFault:
            self.close()
            raise

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            require_capture(self, "an all-reduce")
        return reduce_in_parts(x, self.max_bytes, self._reduce)

    def _reduce(self, x: torch.Tensor) -> torch.Tensor:
        if self._buffer is None:
            raise RuntimeError("open() comes first")
        staged = self._buffer[: x.numel() * x.element_size()].view(x.dtype)
        staged.copy_(x.view(-1))
        reduced = getattr(torch.ops.symm_mem, OPERATIONS[self.kind])(staged, "sum", self._group)
        out = reduced.clone() if reduced.data_ptr() == staged.data_ptr() else reduced
        return out.view(x.shape)

    def abort(self) -> None:
        """Nothing: a kernel that waits for a peer ends with its process, which the driver ends."""

    def close(self) -> None:
        """Drops the buffer; graphs must not be replayed any more."""
        self._buffer = None
        forget_group(self._group)
        self._registered = None


def register_group(name: str, store: dist.Store, rank: int, world_size: int) -> dist.ProcessGroup:
    """Enters a group in torch's two global registries: its versions ask one or the other.

    All that symmetric memory wants of a group is its name, and its store, which the handles are exchanged through. It
    is registered only as long as what is returned is kept.
    """
    from torch._C._distributed_c10d import FakeProcessGroup, _register_process_group, _SymmetricMemory

    group = dist.ProcessGroup(store, rank, world_size)
    # a group's name, which torch 2.14 asks for, is kept by its backends: this one connects nobody
    nobody = FakeProcessGroup._create_internal(rank, world_size)
    group._register_backend(torch.device("cuda"), dist.ProcessGroup.BackendType.CUSTOM, nobody)
    group._set_group_name(name)
    _register_process_group(name, group)
    _SymmetricMemory.set_group_info(name, rank, world_size, store)
    return group


def forget_group(name: str) -> None:
    """Takes a group out again; nothing if it is not there."""
    from torch._C._distributed_c10d import _unregister_process_group

    with contextlib.suppress(RuntimeError):
        _unregister_process_group(name)
