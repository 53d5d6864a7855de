"""How ranks of one device kind come to a communicator: what each offers, and what they make of all offers."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from actors.communicator.arena import host_identity
from actors.communicator.base import Communicator
from actors.communicator.choice import Choice, choose, choose_gpu
from actors.communicator.gloo import GlooAllReduce
from actors.communicator.nccl import NcclAllReduce
from actors.communicator.process_group import JoinedGroup, connect_store, join
from actors.communicator.sgl_kernel import GpuOffer, SglKernelAllReduce
from actors.communicator.shared_memory import SharedMemoryAllReduce, ShareOffer, arena_bytes_needed
from actors.communicator.single import SingleRank
from raylaunch.errors import RankFault

if TYPE_CHECKING:
    from actors.rank import RankSpec

ARENA_SPARE = 1 << 20  # small inputs of many pieces are rounded up


@dataclass(frozen=True)
class MemoryOffer:
    """What a rank tells its peers about memory: its node, and what they may map."""

    node: str
    share: ShareOffer | GpuOffer


class Link(Protocol):
    """The way of one device kind. ``close`` gives back whatever is held, in any state."""

    def offer(self) -> MemoryOffer:
        """What this rank hands to its peers."""

    def settle(self, offers: Sequence[MemoryOffer], store: str) -> tuple[Communicator, str]:
        """The communicator that all ranks arrive at, and the reason; ``store`` is the rendezvous."""

    def close(self) -> None:
        """Ends the communicator."""


class CpuLink:
    """Memory shared between processes; else gloo."""

    def __init__(self, spec: RankSpec, path: Path) -> None:
        self.spec, self.path = spec, path
        self._communicator: Communicator | None = None
        self._joined: JoinedGroup | None = None
        self._shared: SharedMemoryAllReduce | None = None

    def offer(self) -> MemoryOffer:
        """See :class:`Link`."""
        spec = self.spec
        self._shared = shared = SharedMemoryAllReduce(
            spec.rank,
            spec.world_size,
            spec.config.communicator.max_bytes,
            arena_bytes(spec, self.path),
            spec.config.deadlines.collective,
        )
        if spec.world_size > 1 and spec.config.communicator.custom_all_reduce:
            return MemoryOffer(platform.node(), shared.offer())
        nothing = ShareOffer(spec.rank, "", platform.machine(), shared.max_bytes, None, "not asked for")
        return MemoryOffer(platform.node(), nothing)

    def settle(self, offers: Sequence[MemoryOffer], store: str) -> tuple[Communicator, str]:
        """See :class:`Link`. Raises RankFault F16 if a peer's memory cannot be mapped after all."""
        spec, shared = self.spec, self._shared
        if shared is None:
            raise RuntimeError("offer() comes before settle()")
        shares = [offer.share for offer in offers if isinstance(offer.share, ShareOffer)]
        enabled = spec.config.communicator.custom_all_reduce
        choice = choose(shares, enabled, spec.world_size, [offer.node for offer in offers])
        self._communicator = self._make(choice, shared, shares, store)
        return self._communicator, choice.reason

    def _make(
        self, choice: Choice, shared: SharedMemoryAllReduce, shares: list[ShareOffer], store: str
    ) -> Communicator:
        spec = self.spec
        if choice.kind == "shared-memory":
            shared.attach(shares)
            return shared
        shared.close()
        if choice.kind == "single":
            return SingleRank()
        timeout = spec.config.deadlines.collective
        self._joined = join(store, spec.rank, spec.world_size, timeout, spec.bind_host)
        return GlooAllReduce(self._joined, spec.config.communicator.max_bytes, timeout)

    def close(self) -> None:
        """See :class:`Link`."""
        for held in (self._communicator, self._shared, self._joined):
            if held is not None:
                held.close()


class GpuLink:
    """``sgl_kernel`` where the ranks' GPUs can read each other's memory; else NCCL."""

    def __init__(self, spec: RankSpec) -> None:
        self.spec = spec
        self._custom: SglKernelAllReduce | None = None
        self._communicator: Communicator | None = None

    def offer(self) -> MemoryOffer:
        """See :class:`Link`."""
        spec = self.spec
        custom = SglKernelAllReduce(
            spec.rank, spec.world_size, spec.config.communicator.max_bytes, host_identity(),
            spec.config.communicator.table_rows,
        )  # fmt: skip
        self._custom = custom
        if spec.world_size > 1 and spec.config.communicator.custom_all_reduce:
            return MemoryOffer(platform.node(), custom.offer())
        return MemoryOffer(platform.node(), GpuOffer(spec.rank, "", "", custom.max_bytes, None, None, "not asked for"))

    def settle(self, offers: Sequence[MemoryOffer], store: str) -> tuple[Communicator, str]:
        """See :class:`Link`."""
        spec, custom = self.spec, self._custom
        if custom is None:
            raise RuntimeError("offer() comes before settle()")
        shares = [offer.share for offer in offers if isinstance(offer.share, GpuOffer)]
        enabled = spec.config.communicator.custom_all_reduce
        choice = choose_gpu(shares, enabled, spec.world_size, [offer.node for offer in offers])
        self._communicator = self._make(choice, custom, shares, store)
        return self._communicator, choice.reason

    def _make(self, choice: Choice, custom: SglKernelAllReduce, shares: list[GpuOffer], store: str) -> Communicator:
        if choice.kind == "sgl_kernel":
            custom.attach(shares)
            return custom
        custom.close()
        if choice.kind == "single":
            return SingleRank()
        timeout = self.spec.config.deadlines.collective
        nccl = NcclAllReduce(connect_store(store, timeout), self.spec.rank, self.spec.world_size, timeout)
        nccl.open()
        return nccl

    def close(self) -> None:
        """See :class:`Link`."""
        for held in (self._communicator, self._custom):
            if held is not None:
                held.close()


def make_link(spec: RankSpec, path: Path) -> Link:
    """The link of the ranks' device."""
    return GpuLink(spec) if spec.device == "cuda" else CpuLink(spec, path)


def rank_device(spec: RankSpec) -> torch.device:
    """This rank's device, made current. Raises RankFault F09 if it is not there."""
    if spec.device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if spec.device_index >= count:
        raise RankFault("F09", f"rank {spec.rank} wants GPU {spec.device_index} of those visible, which are {count}")
    torch.cuda.set_device(spec.device_index)
    return torch.device("cuda", spec.device_index)


def arena_bytes(spec: RankSpec, path: Path) -> int:
    """Bytes to share: the staging slots, and the inputs of the largest graph of every piece.

    Raises RankFault if the model's ``config.json`` does not say how large they are.
    """
    data = json.loads((path / "config.json").read_text())
    text = data.get("text_config") or data
    try:
        layers, hidden = int(text["num_hidden_layers"]), int(text["hidden_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise RankFault(None, f"{path}/config.json does not say {error}") from None
    capture = spec.config.capture
    rows = max(capture.prefill_tokens) + max(capture.decode_batch_sizes)
    pieces = layers + 1 if spec.plan.rounds else 0
    # Four bytes per element and two inputs alive hold for every dtype and every decoder of this engine.
    return arena_bytes_needed(spec.config.communicator.max_bytes, pieces, rows, hidden, 4, 2) + ARENA_SPARE
