"""The communicators of ranks on CPUs: what this rank offers, what is possible, and how each kind is opened."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from raylaunch_actors.closing import close_all
from raylaunch_actors.communicator.base import AllReduce
from raylaunch_actors.communicator.choice import Option, cpu_options
from raylaunch_actors.communicator.gloo import GlooAllReduce
from raylaunch_actors.communicator.process_group import join
from raylaunch_actors.communicator.settings import Settings
from raylaunch_actors.communicator.shared_memory import SharedMemoryAllReduce, ShareOffer
from raylaunch_actors.communicator.single import SingleRank


class CpuCommunicators:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._gloo: GlooAllReduce | None = None
        self._shared = SharedMemoryAllReduce(
            settings.rank, settings.world_size, settings.max_bytes, settings.arena_bytes, settings.deadline_s
        )

    def offer(self) -> ShareOffer:
        """This rank's memory, if it is asked for."""
        if self.settings.custom:
            return self._shared.offer()
        return ShareOffer(self.settings.rank, "", platform.machine(), self._shared.max_bytes, None, "not asked for")

    def options(self, offers: Sequence[ShareOffer], nodes: Sequence[str]) -> tuple[Option, ...]:
        return cpu_options(offers, nodes)

    def open(self, kind: str, offers: Sequence[ShareOffer], store: str) -> AllReduce:
        """Opens a kind. Raises RankFault F16 if a peer's memory cannot be mapped after all, F10 if gloo cannot meet."""
        settings = self.settings
        if kind == "shared-memory":
            self._shared.attach(offers)
            return self._shared
        if kind == "single":
            return SingleRank()
        joined = join(store, settings.rank, settings.world_size, settings.deadline_s, settings.bind_host)
        self._gloo = GlooAllReduce(joined, settings.max_bytes, settings.deadline_s)
        return self._gloo

    def close(self) -> None:
        """Gives back everything, opened or only offered."""
        close_all(self._shared, self._gloo)
