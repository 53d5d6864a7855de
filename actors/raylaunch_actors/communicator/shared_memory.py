"""All-reduce through memory that the ranks of one host share.

Eager: each rank copies its input into its own staging slot, says so, and adds up all ranks' slots in rank
order. There are two slots; a rank that is two all-reduces ahead knows that its peers have left the first one.
In a graph: the peers' inputs are read where the graphs write them, so their addresses must be registered
first.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from raylaunch.errors import RankFault
from raylaunch_actors.communicator.arena import (
    HEADER_BYTES,
    Arena,
    ArenaHandle,
    Segment,
    align,
    host_identity,
    open_segment,
)
from raylaunch_actors.communicator.base import CallLabel, RecordedInput, RegistersInputs, require_capture, require_same
from raylaunch_actors.communicator.flags import DONE, START, Flags
from raylaunch_actors.communicator.parts import CaptureContext
from raylaunch_actors.communicator.pending import PendingCalls

MACHINES = ("x86_64", "AMD64")  # see flags.py on memory order
STAGING_VIEWS = 256


@dataclass(frozen=True)
class ShareOffer:
    """What a rank says about sharing its memory; plain data, carried to all ranks by the driver.

    Attributes:
        rank: who offers.
        host: `host_identity()`: memory can be shared where it is equal.
        machine: processor architecture.
        max_bytes: size of a staging slot; must be equal on all ranks.
        handle: the segment, or None.
        reason: why there is no handle, or "".
    """

    rank: int
    host: str
    machine: str
    max_bytes: int
    handle: ArenaHandle | None
    reason: str = ""

    @property
    def shares(self) -> bool:
        """Whether there is memory to map."""
        return self.handle is not None


def arena_bytes_needed(
    max_bytes: int, pieces: int, largest_shape: int, hidden: int, itemsize: int, inputs_alive: int = 1
) -> int:
    """Bytes of arena for a plan: header, two staging slots, and per piece the inputs of its largest graph.

    Args:
        max_bytes: size of a staging slot.
        pieces: compiled pieces that all-reduce.
        largest_shape: padded tokens of the shape captured first; where a later one is larger, the sum of both.
        hidden: elements per token of an all-reduced activation.
        itemsize: bytes per element.
        inputs_alive: inputs of one graph that live at the same time; graphs of decoders have one.
    """
    return HEADER_BYTES + 2 * align(max_bytes) + pieces * inputs_alive * align(largest_shape * hidden * itemsize)


class SharedMemoryCall:
    """An all-reduce recorded in a graph; its peers' inputs are known once it is registered."""

    needs_peers = True

    def __init__(self, owner: SharedMemoryAllReduce, x: torch.Tensor, out: torch.Tensor, label: CallLabel) -> None:
        self.label = label
        self.x = x
        self.out = out
        self.inputs: list[torch.Tensor] = []
        self._owner = owner

    @property
    def registered(self) -> bool:
        """Whether every rank's input is known here."""
        return bool(self.inputs)

    def run(self) -> None:
        """Adds the ranks' inputs into `out`. Raises RankFault F01 if it is not registered."""
        if not self.inputs:
            raise RankFault("F01", f"rank {self._owner.rank}: {self.label} runs before its inputs are registered")
        self._owner.reduce_registered(self.inputs, self.out)


class SharedMemoryAllReduce(CaptureContext):
    """Staging slots and recorded inputs in an arena of each rank, which all have mapped.

    Used in two verbs before anything else: `offer()`, then `attach()` with all ranks' offers.

    Args:
        rank, world_size: place in the group.
        max_bytes: size of a staging slot; larger inputs are reduced in chunks.
        arena_bytes: memory to share, see `arena_bytes_needed`.
        deadline_s: seconds that a wait for a peer may take.
    """

    kind = "shared-memory"

    def __init__(self, rank: int, world_size: int, max_bytes: int, arena_bytes: int, deadline_s: float) -> None:
        self.rank = rank
        self.world_size = world_size
        self.max_bytes = align(max_bytes)
        self.arena_bytes = arena_bytes
        self.deadline_s = deadline_s
        self._arena: Arena | None = None
        self._segments: list[Segment] = []
        self._flags: Flags | None = None
        self._calls: PendingCalls[SharedMemoryCall] = PendingCalls(rank)
        self._sequence = 0
        self._staging: dict[tuple[object, ...], list[torch.Tensor]] = {}

    # ---- connecting ------------------------------------------------------------------------------

    def offer(self) -> ShareOffer:
        """Makes this rank's memory and says how to reach it, or why it cannot be shared; does not raise."""
        machine, host = platform.machine(), "unknown"
        try:
            host = host_identity()
            if machine not in MACHINES:
                raise RankFault("F16", f"the order of memory writes is only known on x86-64, not on {machine}")
            if self._arena is None:
                arena = Arena.create(f"rank{self.rank}", max(self.arena_bytes, self._staging_end()))
                arena.alloc(self._staging_end() - HEADER_BYTES)
                self._arena = arena
        except (RankFault, OSError) as error:
            return ShareOffer(self.rank, host, machine, self.max_bytes, None, str(error))
        return ShareOffer(self.rank, host, machine, self.max_bytes, self._arena.handle())

    def attach(self, offers: Sequence[ShareOffer]) -> None:
        """Maps the peers' memory; ``offers[r]`` is rank r's.

        Raises:
            RankFault: F16 if a peer's memory cannot be mapped, F19 if the offers do not fit together.
        """
        if self._arena is None:
            raise RuntimeError("offer() comes before attach()")
        ranks = [offer.rank for offer in offers]
        if ranks != list(range(self.world_size)):
            raise RankFault("F19", f"rank {self.rank}: offers of ranks {ranks}, wanted 0 to {self.world_size - 1}")
        segments: list[Segment] = []
        for offer in offers:
            if offer.max_bytes != self.max_bytes:
                raise RankFault(
                    "F19",
                    f"staging is {self.max_bytes} B on rank {self.rank}, {offer.max_bytes} B on {offer.rank}",
                )
            if offer.rank == self.rank:
                segments.append(self._arena)
            elif offer.handle is None:
                raise RankFault("F16", f"rank {offer.rank} does not share its memory: {offer.reason}")
            else:
                segments.append(open_segment(f"rank{offer.rank}", offer.handle))
        self._segments = segments
        self._flags = Flags(self.rank, segments, self.deadline_s)

    def close(self) -> None:
        """Drops the mappings and the descriptor. Graphs that still exist keep the memory they use."""
        self._calls.drop()
        self._staging.clear()
        self._flags = None
        self._segments = []
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    def abort(self) -> None:
        """Ends the waits of all ranks with CollectiveAborted."""
        flags = self._flags
        if flags is not None:
            flags.abort()

    # ---- eager -----------------------------------------------------------------------------------

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Real inside of `capture()` too."""
        x = x.contiguous()
        if x.numel() == 0:
            return x.clone()
        if x.numel() * x.element_size() > self.max_bytes:
            chunks = x.view(-1).split(self.max_bytes // x.element_size())
            return torch.cat([self._reduce_staged(chunk) for chunk in chunks]).view(x.shape)
        return self._reduce_staged(x)

    def _reduce_staged(self, x: torch.Tensor) -> torch.Tensor:
        flags = self._attached()
        self._sequence += 1
        slots = self._slots(self._sequence & 1, x)
        slots[self.rank].copy_(x)
        flags.publish(START, self._sequence)
        flags.wait(START, self._sequence)
        out = torch.empty_like(slots[0])
        _add_up(slots, out)
        return out

    def _slots(self, slot: int, x: torch.Tensor) -> list[torch.Tensor]:
        key = (slot, x.shape, x.dtype)
        views = self._staging.get(key)
        if views is None:
            if len(self._staging) >= STAGING_VIEWS:
                self._staging.clear()
            offset = HEADER_BYTES + slot * self.max_bytes
            views = self._staging[key] = [s.view(offset, x.shape, x.dtype) for s in self._segments]
        return views

    def _staging_end(self) -> int:
        return HEADER_BYTES + 2 * self.max_bytes

    def _attached(self) -> Flags:
        if self._flags is None:
            raise RuntimeError(f"rank {self.rank}: the communicator is not attached to its peers, or closed")
        return self._flags

    # ---- graphs ----------------------------------------------------------------------------------

    def _drop_pending(self) -> None:
        self._calls.drop()

    def input_memory(self, nbytes: int) -> torch.Tensor:
        if self._arena is None:
            raise RuntimeError("offer() comes before input_memory()")
        try:
            return self._arena.view(self._arena.alloc(nbytes), (nbytes,), torch.uint8)
        except MemoryError as error:
            raise RankFault(
                "F17",
                f"rank {self.rank}: the shared arena is too small for the graphs' all-reduce inputs: "
                f"{error}; capture fewer or smaller shapes (capture.prefill_tokens, capture.decode_batch_sizes)",
            ) from None

    def record(self, x: torch.Tensor, out: torch.Tensor, label: CallLabel) -> SharedMemoryCall:
        require_capture(self, str(label))
        offset = self._arena.offset_of(x) if self._arena is not None else None
        if offset is None or not x.is_contiguous():
            raise RankFault("F16", f"rank {self.rank}: {label}: the input is not contiguous in the shared arena")
        call = SharedMemoryCall(self, x, out, label)
        self._calls.add(call, _described(x, label, (f"rank{self.rank}", offset)))
        return call

    @property
    def registration(self) -> RegistersInputs:
        """This: peers read recorded inputs where they lie."""
        return self

    def pending(self) -> tuple[RecordedInput, ...]:
        return self._calls.inputs

    def registered(self) -> int:
        return self._calls.registered

    @property
    def capacity(self) -> int | None:
        """No limit but the memory."""
        return None

    def inputs_for(self, nbytes: int) -> int:
        """One: peers read all of it where it lies."""
        return 1

    def register(self, peers: Sequence[Sequence[RecordedInput]]) -> int:
        """Nothing is registered if anything is wrong."""
        self._attached()
        if self._capturing:
            raise RankFault("F01", f"rank {self.rank}: inputs are registered after the capture context is left")
        if len(peers) != self.world_size or tuple(peers[self.rank]) != self.pending():
            raise RankFault("F03", f"rank {self.rank}: the lists to register do not hold what this rank has pending")
        require_same(self.rank, peers)
        segments = {segment.name: segment for segment in self._segments}
        opened: list[list[torch.Tensor]] = []
        for index, call in enumerate(self._calls.calls):
            try:
                opened.append([_open(segments, theirs[index], call.x) for theirs in peers])
            except (KeyError, ValueError) as error:
                raise RankFault("F03", f"rank {self.rank}: {call.label}: a peer's address is wrong: {error}") from None
        for call, inputs in zip(self._calls.calls, opened, strict=True):
            call.inputs = inputs
        return self._calls.mark_registered()

    def reduce_registered(self, inputs: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Adds the ranks' graph inputs into `out`; for :class:`SharedMemoryCall`."""
        flags = self._attached()
        self._sequence += 1
        flags.publish(START, self._sequence)
        flags.wait(START, self._sequence)
        _add_up(inputs, out)
        flags.publish(DONE, self._sequence)
        flags.wait(DONE, self._sequence)  # the graph's next operation may overwrite the input


def _add_up(tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """out = the sum in the order of ranks, which gives every rank the same bits."""
    if len(tensors) == 1:
        out.copy_(tensors[0])
        return
    torch.add(tensors[0], tensors[1], out=out)
    for tensor in tensors[2:]:
        out.add_(tensor)


def _described(x: torch.Tensor, label: CallLabel, handle: tuple[str, int]) -> RecordedInput:
    nbytes = x.numel() * x.element_size()
    return RecordedInput(str(label), label.round, label.shape, tuple(x.shape), str(x.dtype), nbytes, handle)


def _open(segments: dict[str, Segment], recorded: RecordedInput, like: torch.Tensor) -> torch.Tensor:
    segment, offset = recorded.handle
    return segments[segment].view(offset, like.shape, like.dtype)
