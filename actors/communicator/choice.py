"""Which all-reduce a group uses, decided alike on every rank from the same facts (F16, F18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from actors.communicator.sgl_kernel import GpuOffer
from actors.communicator.shared_memory import MACHINES, ShareOffer

Kind = Literal["shared-memory", "gloo", "single", "sgl_kernel", "nccl"]


@dataclass(frozen=True)
class Choice:
    """The kind of communicator, and why, in a phrase for the report."""

    kind: Kind
    reason: str


def choose(offers: Sequence[ShareOffer], enabled: bool, world_size: int, nodes: Sequence[str]) -> Choice:
    """Decides from all ranks' offers.

    Args:
        offers: one per rank; their order does not matter.
        enabled: whether the configuration allows the custom all-reduce.
        world_size: ranks in the group.
        nodes: the node of each rank.

    Raises:
        ValueError: the offers are not one per rank.
    """
    settled = _settled("gloo", enabled, world_size, nodes)
    if settled is not None:
        return settled
    offers = sorted(offers, key=lambda offer: offer.rank)
    if [offer.rank for offer in offers] != list(range(world_size)):
        raise ValueError(f"offers of ranks {[offer.rank for offer in offers]}, wanted one of each of {world_size}")
    first = offers[0]
    for offer in offers:
        if offer.machine not in MACHINES:
            return Choice("gloo", f"rank {offer.rank} runs on {offer.machine}; the order of memory writes needs x86-64")
        if offer.handle is None:
            return Choice("gloo", f"rank {offer.rank} cannot share memory: {offer.reason}")
        if offer.host != first.host:
            return Choice("gloo", f"ranks 0 and {offer.rank} cannot share memory: {first.host} / {offer.host}")
        if offer.max_bytes != first.max_bytes:
            return Choice("gloo", f"ranks 0 and {offer.rank} stage {first.max_bytes} and {offer.max_bytes} B")
    return Choice("shared-memory", f"{world_size} ranks on one host")


def choose_gpu(offers: Sequence[GpuOffer], enabled: bool, world_size: int, nodes: Sequence[str]) -> Choice:
    """As :func:`choose`, for ranks on GPUs: ``sgl_kernel`` if all can open each other's memory, else NCCL."""
    settled = _settled("nccl", enabled, world_size, nodes)
    if settled is not None:
        return settled
    first = min(offers, key=lambda offer: offer.rank)
    for offer in sorted(offers, key=lambda offer: offer.rank):
        if offer.signals is None or offer.staging is None:
            return Choice("nccl", f"rank {offer.rank} cannot share memory: {offer.reason}")
        if offer.host != first.host:
            return Choice("nccl", f"ranks 0 and {offer.rank} cannot share memory: {first.host} / {offer.host}")
    return Choice("sgl_kernel", f"{world_size} GPUs of one host")


def _settled(library: Kind, enabled: bool, world_size: int, nodes: Sequence[str]) -> Choice | None:
    """The choice where memory need not be looked at, with the device's ``library`` as the fallback; else None."""
    if world_size == 1:
        return Choice("single", "one rank")
    if not enabled:
        return Choice(library, "the custom all-reduce is switched off in the configuration")
    if len(set(nodes)) > 1:
        return Choice(library, f"the group spans {len(set(nodes))} nodes")
    return None
