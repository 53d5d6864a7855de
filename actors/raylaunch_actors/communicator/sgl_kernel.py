"""All-reduce on GPUs of one host by ``sgl_kernel``: each rank's kernel reads its peers' memory directly.

Eager: the input is copied into a staging buffer that the peers have opened. In a captured graph: the peers read the
graph's own input, whose address the kernel library records while the stream captures; the addresses are exchanged
and registered afterwards, and a replay before that would read whatever the table holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from raylaunch.errors import RankFault
from raylaunch_actors.communicator.base import CallLabel, RecordedInput, RegistersInputs, require_capture, require_same
from raylaunch_actors.communicator.cuda_memory import HANDLE_BYTES, NO_BUFFER, CudaRuntime
from raylaunch_actors.communicator.parts import CaptureContext
from raylaunch_actors.communicator.streams import reduce_in_parts
from raylaunch_actors.communicator.topology import GpuPlace

WORLD_SIZES = (2, 4, 6, 8)
ROW_BYTES = 64  # a row of the table: an address for each of at most eight ranks
TABLE_ROWS = 131_072


@dataclass(frozen=True)
class GpuOffer:
    """What a rank says about sharing its GPU memory; plain data, carried to all ranks by the driver.

    Attributes:
        rank: who offers.
        host: `host_identity()`: handles can be opened where it is equal.
        place: its GPU among those of the host.
        max_bytes: size of the staging buffer; must be equal on all ranks.
        signals: handle of the memory in which ranks meet, or None.
        staging: handle of the staging buffer, or None.
        reason: why there are no handles, or "".
        nccl_host: where NCCL thinks that the rank is: it refuses two ranks on one GPU of one host.
        symmetric: why torch has no symmetric memory here, or "".
    """

    rank: int
    host: str
    place: GpuPlace
    max_bytes: int
    signals: bytes | None = field(repr=False)
    staging: bytes | None = field(repr=False)
    reason: str = ""
    nccl_host: str = ""
    symmetric: str = ""

    @property
    def shares(self) -> bool:
        """Whether there is memory to open."""
        return self.signals is not None and self.staging is not None


class GpuCall:
    """An all-reduce recorded in a graph, whose input is at ``address``, in the allocation ``buffer``."""

    needs_peers = True

    def __init__(self, label: CallLabel, address: int, buffer: int) -> None:
        self.label, self.address, self.buffer = label, address, buffer
        self.registered = False

    def run(self) -> None:
        """Never called: the graph holds the kernel."""


class SglKernelAllReduce(CaptureContext):
    """The kernels of ``sgl_kernel``, and what was recorded of their inputs.

    Used in two verbs before anything else: `offer()`, then `attach()` with all ranks' offers.

    Args:
        rank, world_size: place in the group.
        max_bytes: size of the staging buffer; larger inputs are reduced in chunks.
        host: `host_identity()`.
        table_rows: inputs that can be registered.
    """

    kind = "sgl_kernel"

    def __init__(
        self,
        rank: int,
        world_size: int,
        max_bytes: int,
        host: str,
        table_rows: int = TABLE_ROWS,
    ) -> None:
        self.rank, self.world_size, self.max_bytes, self.table_rows = rank, world_size, max_bytes, table_rows
        self._host = host
        self._runtime: CudaRuntime | None = None
        self._owned: list[int] = []
        self._opened: list[int] = []
        self._kernels: Any = None
        self._context = 0
        self._staging = 0
        self._table: torch.Tensor | None = None
        self._label: tuple[str, int, str] | None = None
        self._calls: list[GpuCall] = []
        self._recorded: list[RecordedInput] = []
        self._registered = 0

    # ---- connecting ------------------------------------------------------------------------------

    def offer(self, place: GpuPlace) -> GpuOffer:
        """Allocates this rank's shared memory and says how to open it, or why it cannot be; does not raise."""
        try:
            from sgl_kernel import allreduce

            self._kernels = allreduce
            self._runtime = runtime = CudaRuntime.load()
            require_shareable(runtime)
            for nbytes in (allreduce.meta_size() + self.max_bytes, self.max_bytes):
                self._owned.append(runtime.allocate(nbytes))  # each at once: close() frees what there is
            signals, staging = (runtime.handle_of(address) for address in self._owned)
            return GpuOffer(self.rank, self._host, place, self.max_bytes, signals, staging)
        except (RankFault, ImportError, OSError) as error:
            return GpuOffer(self.rank, self._host, place, self.max_bytes, None, None, str(error))

    def attach(self, offers: Sequence[GpuOffer], full_nvlink: bool) -> None:
        """Opens the peers' memory; ``offers[r]`` is rank r's.

        Args:
            full_nvlink: every pair of the group's GPUs is linked by NVLink.

        Raises:
            RankFault: F16 if a peer's memory cannot be opened.
        """
        if self._runtime is None or len(self._owned) < 2:
            raise RuntimeError("offer() comes before attach()")
        signals, staging = [], []
        for offer in offers:
            if offer.rank == self.rank:
                signals.append(self._owned[0])
                staging.append(self._owned[1])
                continue
            if offer.signals is None or offer.staging is None:
                raise RankFault("F16", f"rank {offer.rank} does not share its memory: {offer.reason}")
            signals.append(self._open(offer.signals))
            staging.append(self._open(offer.staging))
        self._table = torch.zeros(table_bytes(self.table_rows), dtype=torch.uint8, device="cuda")
        kernels = self._loaded()
        self._context = kernels.init_custom_ar(signals, self._table, self.rank, full_nvlink)
        kernels.register_buffer(self._context, staging)
        self._staging = staging[self.rank]

    def close(self) -> None:
        """Closes the peers' memory and frees its own. Graphs must not be replayed any more."""
        runtime, self._runtime = self._runtime, None
        if runtime is None:
            return
        torch.cuda.synchronize()
        if self._context:
            self._loaded().dispose(self._context)
            self._context = 0
        for address in self._opened:
            runtime.close(address)
        for address in self._owned:
            runtime.free(address)
        self._opened, self._owned, self._calls, self._recorded = [], [], [], []

    def abort(self) -> None:
        """Nothing: a kernel that waits for a peer ends with its process, which the driver ends."""

    # ---- reducing --------------------------------------------------------------------------------

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Raises RankFault F02 if the stream captures outside of `capture()`: the address would never be registered."""
        return reduce_in_parts(x, self.max_bytes, self._reduce)

    def _reduce(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        if torch.cuda.is_current_stream_capturing():
            self._record(x)
            self._loaded().all_reduce(self._context, x, out, 0, 0)
        else:
            self._loaded().all_reduce(self._context, x, out, self._staging, self.max_bytes)
        return out

    # ---- graphs ----------------------------------------------------------------------------------

    def _drop_pending(self) -> None:
        self._calls, self._recorded = [], []

    @contextlib.contextmanager
    def recording(self, round: str, shape: int, piece: str) -> Iterator[list[GpuCall]]:
        """Names what is recorded inside; gives the calls that were."""
        self._label, first = (round, shape, piece), len(self._calls)
        calls: list[GpuCall] = []
        try:
            yield calls
        finally:
            self._label = None
            calls.extend(self._calls[first:])

    def _record(self, x: torch.Tensor) -> None:
        round, shape, piece = self._label or ("?", 0, "?")
        index = sum(call.label.piece == piece and call.label.shape == shape for call in self._calls)
        label = CallLabel(round, shape, piece, index)
        require_capture(self, str(label))
        if self._registered + len(self._calls) >= self.table_rows:
            raise RankFault(
                "F17", f"rank {self.rank}: {label}: the table of registered inputs has {self.table_rows} rows"
            )
        address = x.data_ptr()
        assert self._runtime is not None
        self._calls.append(GpuCall(label, address, self._runtime.buffer_of(address)))
        nbytes = x.numel() * x.element_size()
        self._recorded.append(RecordedInput(str(label), round, shape, tuple(x.shape), str(x.dtype), nbytes, ("", 0)))

    def input_memory(self, nbytes: int) -> torch.Tensor:
        """Memory of torch's allocator: any of it may be an input."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cuda")

    @property
    def registration(self) -> RegistersInputs:
        """This: peers read recorded inputs where they lie."""
        return self

    def pending(self) -> tuple[RecordedInput, ...]:
        """Addresses are known once the capture context is left.

        Raises RankFault F04 if the memory of a recorded input was given back meanwhile, F02 if the kernel library has
        recorded another number of inputs than were seen here.
        """
        if self._capturing or not self._recorded:
            return tuple(self._recorded)
        self._require_alive()
        handles, offsets = self._loaded().get_graph_buffer_ipc_meta(self._context)
        if len(offsets) != len(self._recorded):
            raise RankFault(
                "F02", f"rank {self.rank}: the kernel holds {len(offsets)} inputs, {len(self._recorded)} were recorded"
            )
        data = bytes(value & 0xFF for value in handles)
        return tuple(
            RecordedInput(
                one.label, one.round, one.shape, one.tensor_shape, one.dtype, one.nbytes,
                (data[i * HANDLE_BYTES : (i + 1) * HANDLE_BYTES].hex(), int(offsets[i])),
            )
            for i, one in enumerate(self._recorded)
        )  # fmt: skip

    def _require_alive(self) -> None:
        """Graphs of one pool use its memory in turn, which is no fault as long as the allocation itself stays."""
        assert self._runtime is not None
        for call in self._calls:
            now = self._runtime.buffer_of(call.address)
            if now == NO_BUFFER or call.buffer not in (NO_BUFFER, now):  # it may not have been told while capturing
                what = "was given back" if now == NO_BUFFER else "was given back, and allocated again"
                raise RankFault(
                    "F04",
                    f"rank {self.rank}: {call.label} was recorded at {call.address:#x}; that memory {what} before it "
                    "was registered: captured memory was reused",
                )

    def register(self, peers: Sequence[Sequence[RecordedInput]]) -> int:
        """Nothing is registered if anything is wrong."""
        if self._capturing:
            raise RankFault("F01", f"rank {self.rank}: inputs are registered after the capture context is left")
        if len(peers) != self.world_size or len(peers[self.rank]) != len(self._recorded):
            raise RankFault("F03", f"rank {self.rank}: the lists to register do not hold what this rank has pending")
        require_same(self.rank, peers)
        handles = [list(b"".join(bytes.fromhex(one.handle[0]) for one in theirs)) for theirs in peers]
        offsets = [[one.handle[1] for one in theirs] for theirs in peers]
        count = len(self._recorded)
        if count:
            self._loaded().register_graph_buffers(self._context, handles, offsets)
        for call in self._calls:
            call.registered = True
        self._registered += count
        self._calls, self._recorded = [], []
        return count

    def registered(self) -> int:
        return self._registered

    @property
    def capacity(self) -> int | None:
        """Free rows of its table."""
        return self.table_rows - self._registered - len(self._calls)

    def inputs_for(self, nbytes: int) -> int:
        """One for each chunk."""
        return max(1, -(-nbytes // self.max_bytes))

    def _open(self, handle: bytes) -> int:
        assert self._runtime is not None
        address = self._runtime.open(handle)
        self._opened.append(address)
        return address

    def _loaded(self) -> Any:
        if self._kernels is None:
            raise RuntimeError(f"rank {self.rank}: offer() comes first")
        return self._kernels


def table_bytes(inputs: int) -> int:
    """Size of a table for so many recorded inputs: the staging buffers take a row too."""
    return (inputs + 1) * ROW_BYTES


def table_inputs(nbytes: int) -> int:
    """Recorded inputs that a table of this size holds beside the staging buffers."""
    return nbytes // ROW_BYTES - 1


def require_shareable(runtime: CudaRuntime) -> None:
    """Raises RankFault F16 if memory of torch's allocator, where graphs have their inputs, cannot be shared."""
    probe = torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
    try:
        runtime.handle_of(probe.untyped_storage().data_ptr())
    except RankFault as fault:
        raise RankFault(
            "F16",
            f"torch's GPU memory cannot be shared ({fault.message}): PYTORCH_CUDA_ALLOC_CONF must not ask for "
            "expandable_segments, and no memory saver may be in use",
        ) from fault
