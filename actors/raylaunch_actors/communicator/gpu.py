"""The communicators of ranks on GPUs: what this rank offers, what is possible, and how each kind is opened."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from raylaunch_actors.closing import close_all
from raylaunch_actors.communicator import topology
from raylaunch_actors.communicator.arena import host_identity
from raylaunch_actors.communicator.base import AllReduce
from raylaunch_actors.communicator.choice import SYMMETRIC, Option, gpu_options
from raylaunch_actors.communicator.nccl import NcclAllReduce
from raylaunch_actors.communicator.process_group import connect_store
from raylaunch_actors.communicator.settings import Settings
from raylaunch_actors.communicator.sgl_kernel import GpuOffer, SglKernelAllReduce
from raylaunch_actors.communicator.single import SingleRank
from raylaunch_actors.communicator.symmetric_memory import SymmetricMemoryAllReduce, missing_support

NCCL_HOST = "NCCL_HOSTID"


class GpuCommunicators:
    """Opened where the rank's device is current."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._opened: list[AllReduce] = []
        self._custom = SglKernelAllReduce(
            settings.rank, settings.world_size, settings.max_bytes, host_identity(), settings.table_rows
        )

    def offer(self) -> GpuOffer:
        """This rank's place, and its memory if that is asked for."""
        settings, host, place = self.settings, host_identity(), topology.gpu_place()
        if settings.custom:
            offer = self._custom.offer(place)
        else:
            offer = GpuOffer(settings.rank, host, place, settings.max_bytes, None, None, "not asked for")
        return dataclasses.replace(offer, nccl_host=os.environ.get(NCCL_HOST, host), symmetric=missing_support())

    def options(self, offers: Sequence[GpuOffer], nodes: Sequence[str]) -> tuple[Option, ...]:
        return gpu_options(offers, nodes)

    def open(self, kind: str, offers: Sequence[GpuOffer], store: str) -> AllReduce:
        """Opens a kind. Raises RankFault F16 if a peer's memory cannot be opened, NotOpened alike on all ranks."""
        settings = self.settings
        if kind == "sgl_kernel":
            self._custom.attach(offers, full_nvlink=not topology.unlinked([offer.place for offer in offers]))
            return self._custom
        if kind == "single":
            return SingleRank()
        joined = connect_store(store, settings.open_s)
        opened: NcclAllReduce | SymmetricMemoryAllReduce
        if kind in SYMMETRIC:
            opened = SymmetricMemoryAllReduce(
                kind, joined, settings.rank, settings.world_size, settings.max_bytes, settings.open_s
            )
        else:
            opened = NcclAllReduce(joined, settings.rank, settings.world_size, settings.deadline_s, settings.open_s)
        opened.open()
        self._opened.append(opened)
        return opened

    def close(self) -> None:
        """Gives back everything, opened or only offered."""
        close_all(*self._opened, self._custom)
