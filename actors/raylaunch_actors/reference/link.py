"""How a rank comes to its communicator: it offers, all choose alike from all offers, then it opens what was chosen."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from raylaunch.errors import RankFault
from raylaunch.protocol import CommunicatorFacts, MeasuredSize
from raylaunch_actors.communicator.base import AllReduce, RecordedInput, registered_inputs
from raylaunch_actors.communicator.choice import Choice, Option, Times, choose, fastest, spread_out
from raylaunch_actors.communicator.process_group import NotOpened
from raylaunch_actors.communicator.routed import kinds_in, routed
from raylaunch_actors.communicator.settings import Settings
from raylaunch_actors.graphs.probes import Probes

MEASURED_SIZES = 12  # sizes between them go as the next larger one does
REPEATS = 15


@dataclass(frozen=True)
class MemoryOffer:
    """What a rank tells its peers about memory: its node, and what they may map."""

    node: str
    share: Any


class Communicators(Protocol):
    """The kinds of one device: cpu.py and gpu.py."""

    def offer(self) -> Any:
        """What this rank hands to its peers; plain data. Does not raise where something is impossible."""

    def options(self, offers: Sequence[Any], nodes: Sequence[str]) -> tuple[Option, ...]:
        """What is possible, from all ranks' offers: the custom all-reduce first, the library last."""

    def open(self, kind: str, offers: Sequence[Any], store: str) -> AllReduce:
        """Connects a kind to its peers; every rank does so in the same order. ``store`` is the rendezvous.

        Raises NotOpened if no rank can use it, RankFault if this one cannot.
        """

    def close(self) -> None:
        """Gives back everything, opened or only offered. May be called more than once."""


class Link:
    """A rank's way to its communicator.

    `offer()`, then `connect()` with all ranks' offers; if the choice is to be measured, `probe()`, `time()` and
    `decide()` in between; then `communicator` and `facts()`.
    """

    def __init__(self, settings: Settings, kinds: Communicators) -> None:
        self.settings = settings
        self.choice = Choice((), (), "")
        self.opened: dict[str, AllReduce] = {}
        self._kinds = kinds
        self._measured: tuple[MeasuredSize, ...] = ()
        self._probes: Probes | None = None
        self._graphs = True
        self._communicator: AllReduce | None = None

    @property
    def communicator(self) -> AllReduce:
        """What was chosen. Raises RuntimeError before that."""
        if self._communicator is None:
            raise RuntimeError("connect() comes first")
        return self._communicator

    def offer(self) -> MemoryOffer:
        """What this rank hands to its peers."""
        return MemoryOffer(platform.node(), self._kinds.offer())

    def connect(self, offers: Sequence[MemoryOffer], store: str, progress: Callable[[str], None]) -> None:
        """Chooses, and opens what was chosen. Raises RankFault F16 or F18 if no all-reduce is possible."""
        shares = [offer.share for offer in offers]
        options = self._kinds.options(shares, [offer.node for offer in offers])
        settings = self.settings
        largest = max(settings.sizes, default=0)
        self.choice = choose(settings.wanted, options, settings.world_size, largest, settings.max_bytes)
        self._open(shares, store, progress)
        if self.choice.routes:
            self._communicator = routed(self.choice.routes, self.opened)

    def _open(self, shares: Sequence[Any], store: str, progress: Callable[[str], None]) -> None:
        """Opens what was chosen; what is only there to be measured is left out where it cannot be opened."""
        choice, problems = self.choice, []
        for kind in choice.kinds:
            progress(f"connecting by {kind}")
            try:
                self.opened[kind] = self._kinds.open(kind, shares, store)
            except NotOpened as fault:
                if choice.routes:
                    raise
                problems.append(f"{kind} is not: {fault.message}")
        if not self.opened:
            raise RankFault("F18", f"no all-reduce is possible between these ranks: {'; '.join(problems)}")
        if problems:
            self.choice = Choice(tuple(self.opened), (), "; ".join((choice.reason, *problems)))

    # ---- where the choice is measured

    def probe(self, dtype: torch.dtype, device: torch.device, graphs: bool) -> tuple[RecordedInput, ...]:
        """Captures what will be timed; all ranks' inputs are wanted by :meth:`time`."""
        self._graphs = graphs
        sizes = spread_out(self.settings.sizes, MEASURED_SIZES)
        self._probes = Probes(self.opened, sizes, dtype, device)
        return self._probes.capture() if graphs else ()

    def time(self, inputs: Sequence[Sequence[RecordedInput]], progress: Callable[[str], None]) -> Times:
        """Microseconds of every possible kind at every size."""
        probes = self._probes
        if probes is None:
            raise RuntimeError("probe() comes first")
        if self._graphs:
            probes.register(inputs)
        run = probes.graph if self._graphs else probes.eager
        times: dict[str, dict[int, float]] = {}
        for kind in self.choice.kinds:
            progress(f"timing {kind}")
            times[kind] = {size: probes.measure(run(kind, size), REPEATS) for size in probes.sizes}
        probes.drop_graphs()
        return times

    def decide(self, of_ranks: Sequence[Times]) -> None:
        """Takes the fastest for every size, from all ranks' times, and closes the kinds that no size goes to.

        All ranks have said their times, so nobody uses those any more. One that registers inputs stays open: its peers
        have its memory open, which must not be freed before each of them has closed it.
        """
        routes, self._measured = fastest(of_ranks, self.choice.kinds)
        self.choice = Choice(self.choice.kinds, routes, self.choice.reason)
        self._communicator = routed(routes, self.opened)
        used = kinds_in(routes)
        for kind, communicator in tuple(self.opened.items()):  # in one order on all ranks
            if kind not in used and communicator.registration is None:
                del self.opened[kind]
                communicator.close()

    # ---- what came of it

    def facts(self) -> CommunicatorFacts:
        """What the ranks must agree on."""
        chosen = self.communicator
        limit = 0 if chosen.kind == "single" else chosen.max_bytes
        routes = self.choice.routes
        return CommunicatorFacts(
            chosen.kind,
            self.choice.reason,
            limit,
            chosen.world_size,
            chosen.registration.capacity if chosen.registration else None,
            routes,
            self._measured,
            registered_inputs(chosen),
        )

    def close(self) -> None:
        """Ends what was opened."""
        self._kinds.close()
