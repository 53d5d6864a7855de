"""CONNECT: ranks meet, share memory if they can, and agree on an all-reduce."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from raylaunch.protocol import Gate
from raylaunch_actors.closing import close_all
from raylaunch_actors.communicator.base import AllReduce
from raylaunch_actors.communicator.process_group import StoreServer, open_store
from raylaunch_actors.device import identity, rank_device
from raylaunch_actors.fingerprint import fingerprint
from raylaunch_actors.gate import RankGate
from raylaunch_actors.reference.channel import FollowerSocket, Offer, RankZeroSockets
from raylaunch_actors.reference.link import Link
from raylaunch_actors.reference.link_setup import make_link, message_dtype
from raylaunch_actors.spec import RankSpec

GROUP = "tp"


@dataclass(frozen=True)
class Rendezvous:
    """What rank 0 tells its peers first: where its store and its sockets are bound already."""

    store: str
    sockets: Offer


class Connection:
    """What CONNECT opens on a rank; closed when the rank ends, in whatever way."""

    def __init__(self, spec: RankSpec, path: Path) -> None:
        self.spec, self.path = spec, path
        self.sockets: RankZeroSockets | None = None
        self.follower: FollowerSocket | None = None
        self.store: StoreServer | None = None
        self.link: Link | None = None
        self._rendezvous: Rendezvous | None = None

    @property
    def rendezvous(self) -> Rendezvous:
        """Where rank 0 is reached. Raises ``RuntimeError`` before the ranks have met."""
        if self._rendezvous is None:
            raise RuntimeError("the ranks have not met yet")
        return self._rendezvous

    def listen(self) -> Rendezvous:
        """On rank 0: binds everything that peers will connect to. Raises RankFault F10 if a port is taken."""
        config = self.spec.config
        self.store = open_store(self.spec.bind_host, config.parallel.rendezvous_port, config.deadlines.connect)
        self.sockets = RankZeroSockets(self.spec.bind_host, self.spec.world_size)
        return Rendezvous(self.store.address, self.sockets.open())

    def meet(self, rendezvous: Rendezvous) -> None:
        """On every rank: takes note of where rank 0 is; followers connect."""
        self._rendezvous = rendezvous
        if self.spec.rank > 0:
            self.follower = FollowerSocket(self.spec.rank, rendezvous.sockets)
            self.follower.open()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            close_all(self.link, self.follower, self.sockets, self.store)
        except Exception:
            if error is None:  # else that is to be told, which ended the launch; this has been logged
                raise


def connect(connection: Connection, gate: RankGate) -> AllReduce:
    """Passes the gates of CONNECT.

    Raises RankFault F10 (port), F16 (memory that a peer cannot map), F18 (no all-reduce is possible).
    """
    spec = connection.spec
    device = meet(connection, gate)
    dtype = message_dtype(spec, connection.path)
    connection.link = link = make_link(spec, dtype)
    offers = gate.arrive(Gate.ATTACH, offer=link.offer()).offers
    link.connect(offers, connection.rendezvous.store, gate.progress)
    if spec.plan.measures:
        inputs = gate.arrive(Gate.PROBED, offer=link.probe(dtype, device, bool(spec.plan.rounds))).offers
        link.decide(gate.arrive(Gate.MEASURED, offer=link.time(inputs, gate.progress)).offers)
    gate.arrive(Gate.CONNECTED, link.facts())
    return link.communicator


def meet(connection: Connection, gate: RankGate) -> torch.device:
    """MEET: tells the peers who this rank is, and learns where rank 0 is. Returns its device, made current."""
    spec = connection.spec
    rendezvous = connection.listen() if spec.rank == 0 else None
    device = rank_device(spec)
    who = identity(spec, device, fingerprint(spec, connection.path))
    connection.meet(gate.arrive(Gate.MEET, who, offer=rendezvous).offers[0])
    return device
