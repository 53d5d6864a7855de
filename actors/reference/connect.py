"""CONNECT: ranks meet, share memory if they can, and agree on an all-reduce."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from actors.communicator.base import Communicator
from actors.communicator.choice import Choice, choose
from actors.communicator.gloo import GlooAllReduce
from actors.communicator.process_group import JoinedGroup, StoreServer, join, open_store
from actors.communicator.shared_memory import SharedMemoryAllReduce, ShareOffer, arena_bytes_needed
from actors.communicator.single import SingleRank
from actors.fingerprint import fingerprint
from actors.gate import RankGate
from actors.reference.channel import FollowerSocket, Offer, RankZeroSockets
from raylaunch.errors import RankFault
from raylaunch.protocol import CommunicatorFacts, Gate, Identity

if TYPE_CHECKING:
    from actors.rank import RankSpec

GROUP = "tp"
ARENA_SPARE = 1 << 20  # small inputs of many pieces are rounded up


@dataclass(frozen=True)
class Rendezvous:
    """What rank 0 tells its peers first: where its store and its sockets are bound already."""

    store: str
    sockets: Offer


@dataclass(frozen=True)
class MemoryOffer:
    """What a rank tells its peers about memory: its node, and the segment that they may map."""

    node: str
    share: ShareOffer


class Connection:
    """What CONNECT opens on a rank; closed when the rank ends, in whatever way."""

    def __init__(self, spec: RankSpec, path: Path) -> None:
        self.spec, self.path = spec, path
        self.sockets: RankZeroSockets | None = None
        self.follower: FollowerSocket | None = None
        self.store: StoreServer | None = None
        self.joined: JoinedGroup | None = None
        self.communicator: Communicator | None = None
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
        for held in (self.communicator, self.joined, self.follower, self.sockets, self.store):
            if held is not None:
                held.close()


def connect(connection: Connection, gate: RankGate) -> Communicator:
    """Passes the gates of CONNECT. Raises RankFault F10 (port), F16 (memory that a peer cannot map)."""
    spec = connection.spec
    rendezvous = connection.listen() if spec.rank == 0 else None
    identity = Identity(platform.node(), os.getpid(), "cpu", spec.local_rank, fingerprint(spec))
    connection.meet(gate.arrive(Gate.MEET, identity, offer=rendezvous).offers[0])
    shared = SharedMemoryAllReduce(
        spec.rank,
        spec.world_size,
        spec.config.communicator.max_bytes,
        arena_bytes(spec, connection.path),
        spec.config.deadlines.collective,
    )
    connection.communicator = shared
    offers: tuple[MemoryOffer, ...] = gate.arrive(
        Gate.ATTACH, offer=MemoryOffer(platform.node(), _share(spec, shared))
    ).offers
    choice = choose(
        [offer.share for offer in offers],
        spec.config.communicator.custom_all_reduce,
        spec.world_size,
        [offer.node for offer in offers],
    )
    connection.communicator = communicator = _make(connection, choice, shared, offers)
    facts = CommunicatorFacts(communicator.kind, choice.reason, communicator.max_bytes, spec.world_size)
    if communicator.kind == "single":
        facts = CommunicatorFacts("single", choice.reason, 0, 1)
    gate.arrive(Gate.CONNECTED, facts)
    return communicator


def _share(spec: RankSpec, shared: SharedMemoryAllReduce) -> ShareOffer:
    if spec.world_size > 1 and spec.config.communicator.custom_all_reduce:
        return shared.offer()
    return ShareOffer(spec.rank, "", platform.machine(), shared.max_bytes, None, "not asked for")


def _make(
    connection: Connection, choice: Choice, shared: SharedMemoryAllReduce, offers: tuple[MemoryOffer, ...]
) -> Communicator:
    spec = connection.spec
    if choice.kind == "shared-memory":
        shared.attach([offer.share for offer in offers])
        return shared
    shared.close()
    if choice.kind == "single":
        return SingleRank()
    timeout = spec.config.deadlines.collective
    address = connection.rendezvous.store
    connection.joined = join(address, spec.rank, spec.world_size, timeout, spec.bind_host)
    return GlooAllReduce(connection.joined, spec.config.communicator.max_bytes, timeout)


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
