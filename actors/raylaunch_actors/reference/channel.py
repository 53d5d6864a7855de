"""Sockets between the driver, rank 0 and the other ranks while serving. Nothing but ZeroMQ: no Ray.

All are encrypted and authenticated with CURVE. Rank 0 makes a pair of keys for itself and one that its
clients share, accepts that client key only, and hands both out in its offer, which travels through Ray. Who
has not been given the offer cannot connect.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import zmq
from zmq.auth.thread import ThreadAuthenticator

from raylaunch import wire
from raylaunch.errors import RankFault

POLL_MS = 250  # how long a receive blocks before it looks at the stop event
LINGER_MS = 500  # how long closing waits for what is still to be sent
LAST_WORD_MS = 100  # how long a last message may take where nobody may be listening any more


@dataclass(frozen=True)
class Offer:
    """How to reach rank 0. Secret: whoever holds it may connect.

    Attributes:
        requests: address the driver pushes requests to.
        outputs: address the driver pulls outputs from.
        plans: address for each follower, by rank: ``plans[1]`` is rank 1's.
        server_key: rank 0's public CURVE key.
        client_public, client_secret: the CURVE key pair of its clients.
    """

    requests: str
    outputs: str
    plans: dict[int, str]
    server_key: bytes = field(repr=False)
    client_public: bytes = field(repr=False)
    client_secret: bytes = field(repr=False)


def connect(context: zmq.Context[zmq.Socket[bytes]], kind: int, address: str, offer: Offer) -> zmq.Socket[bytes]:
    """A client's socket, of ``kind`` ``zmq.PUSH`` or ``zmq.PULL``, connected with the offer's keys."""
    socket = context.socket(kind)
    socket.curve_serverkey = offer.server_key
    socket.curve_publickey, socket.curve_secretkey = offer.client_public, offer.client_secret
    socket.linger = LINGER_MS
    socket.sndhwm = 0  # the engine limits the requests; a send must never wait on a caller's event loop
    if address.startswith("tcp://["):
        socket.ipv6 = True
    socket.connect(address)
    return socket


class RankZeroSockets:
    """Rank 0's end: requests come in, outputs and step plans go out.

    Args:
        host: address of this node at which driver and followers reach it.
        world_size: ranks of the group.
    """

    def __init__(self, host: str, world_size: int) -> None:
        self.host, self.world_size = host, world_size
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._authenticator: ThreadAuthenticator | None = None
        self._plans: dict[int, zmq.Socket[bytes]] = {}
        self._sockets: list[zmq.Socket[bytes]] = []

    def open(self) -> Offer:
        """Binds all sockets to free ports and returns how to reach them. Raises RankFault if it cannot."""
        self._context = context = zmq.Context()
        server_public, self._secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        only_it = SimpleNamespace(callback=lambda domain, key: key == client_public)
        self._authenticator.configure_curve_callback(credentials_provider=only_it)
        try:
            self._requests, requests = self._bind(context, zmq.PULL)
            self._outputs, outputs = self._bind(context, zmq.PUSH)
            plans: dict[int, str] = {}
            for rank in range(1, self.world_size):
                self._plans[rank], plans[rank] = self._bind(context, zmq.PUSH)
        except zmq.ZMQError as error:
            self.close()
            raise RankFault(None, f"rank 0 cannot bind a socket on {self.host}: {error}") from error
        return Offer(requests, outputs, plans, server_public, client_public, client_secret)

    def receive(self, wait: bool) -> wire.Submit | wire.Abort | wire.Stop | wire.Verify | None:
        """The next message from the driver; None if there is none, at once or (``wait``) after ``POLL_MS``.

        Raises msgspec.DecodeError for bytes that are no message.
        """
        if self._requests.poll(POLL_MS if wait else 0) == 0:
            return None
        return wire.decode_to_rank(self._requests.recv())

    def send_outputs(self, outputs: list[wire.Output], stop: threading.Event) -> None:
        """Sends outputs to the driver. Waits for it until ``stop`` is set, then ``LAST_WORD_MS`` at most."""
        _send(self._outputs, wire.encode(outputs), stop)

    def send_plan(self, plan: wire.StepPlan | wire.Stop | wire.Verify, stop: threading.Event) -> None:
        """Sends what to do next to every follower; waits as :meth:`send_outputs` does."""
        data = wire.encode(plan)
        for socket in self._plans.values():
            _send(socket, data, stop)

    def close(self) -> None:
        """Closes everything; what was sent is still delivered for ``LINGER_MS``. May be called again."""
        if self._context is None:
            return
        context, self._context = self._context, None
        for socket in self._sockets:
            socket.close()
        self._sockets.clear()
        if self._authenticator is not None:
            self._authenticator.stop()
        context.term()  # waits for what lingers

    def _bind(self, context: zmq.Context[zmq.Socket[bytes]], kind: int) -> tuple[zmq.Socket[bytes], str]:
        socket = context.socket(kind)
        self._sockets.append(socket)
        socket.curve_server = True
        socket.curve_secretkey = self._secret
        socket.linger = LINGER_MS
        socket.sndhwm = 0  # outputs of a busy second are few; dropping or blocking on them would be worse
        host = self.host
        if ":" in host:
            socket.ipv6 = True
            host = f"[{host}]"
        port = socket.bind_to_random_port(f"tcp://{host}")
        return socket, f"tcp://{host}:{port}"


class FollowerSocket:
    """The end of every other rank: step plans come in."""

    def __init__(self, rank: int, offer: Offer) -> None:
        self.rank, self.offer = rank, offer
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    def open(self) -> None:
        """Connects to rank 0; that it is there shows with the first plan."""
        self._context = zmq.Context()
        self._plans = connect(self._context, zmq.PULL, self.offer.plans[self.rank], self.offer)

    def receive(self, stop: threading.Event) -> wire.StepPlan | wire.Stop | wire.Verify | None:
        """The next plan; waits for it. None if ``stop`` is set and rank 0 has nothing more to say.

        While plans keep coming they are returned although ``stop`` is set: rank 0 would wait in the
        all-reduces of a step that this rank left out. Raises msgspec.DecodeError.
        """
        while True:
            stopping = stop.is_set()
            if self._plans.poll(POLL_MS):
                return wire.decode_plan(self._plans.recv())
            if stopping:
                return None

    def close(self) -> None:
        """Closes the socket. May be called again."""
        if self._context is not None:
            context, self._context = self._context, None
            self._plans.close()
            context.term()


def _send(socket: zmq.Socket[bytes], data: bytes, stop: threading.Event) -> None:
    while not stop.is_set():
        if socket.poll(POLL_MS, zmq.POLLOUT):
            socket.send(data)
            return
    if socket.poll(LAST_WORD_MS, zmq.POLLOUT):
        socket.send(data)
