"""The driver's end of sockets between nodes: encrypted, and nobody without the keys is heard (CURVE).

SGLang unpickles what arrives: whoever is heard may run anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

HEARTBEAT_MS = 3_000
SILENT_MS = 12_000  # longer than a rank may be stopped, and shorter than another takes to be there


@dataclass(frozen=True)
class Listeners:
    """TCP ports that listen already, and who may connect. Plain data: the detokenizer's process gets it too.

    Attributes:
        ports: the file descriptor of the port for each name of a socket that SGLang binds.
        secret: the driver's secret CURVE key.
        peer: the public CURVE key of the ranks: no other is heard.
    """

    ports: Mapping[str, int]
    secret: bytes = field(repr=False)
    peer: bytes = field(repr=False)

    def only(self, name: str) -> Listeners:
        """The one of a name, for another process."""
        return replace(self, ports={name: self.ports[name]})


class Doors:
    """Opens the ports on sockets as they are bound. ``close`` ends the threads that look at who connects.

    Args:
        listeners: None where all are on one node.
    """

    def __init__(self, listeners: Listeners | None) -> None:
        self._listeners = listeners
        self._authenticators: dict[int, ThreadAuthenticator] = {}  # one for each context: ZeroMQ has no more

    def on(self, get_zmq_socket: Callable[..., Any]) -> Callable[..., Any]:
        """SGLang's function that makes a socket, and this one's way to a port if it binds one that has a port."""

        def bound(context: Any, socket_type: int, endpoint: str | None = None, bind: bool = True) -> Any:
            socket = get_zmq_socket(context, socket_type, endpoint, bind)
            if bind and endpoint is not None:
                self.open(context, socket, endpoint)
            return socket

        return bound

    def open(self, context: Any, socket: Any, name: str) -> None:
        """Has a socket heard at the port of its name too, if it has one, by those who have the keys."""
        if self._listeners is None or name not in self._listeners.ports:
            return
        if context.underlying not in self._authenticators:
            authenticator = ThreadAuthenticator(context)
            authenticator.start()
            peer = self._listeners.peer
            only_it = SimpleNamespace(callback=lambda domain, key: key == peer)
            authenticator.configure_curve_callback(credentials_provider=only_it)
            self._authenticators[context.underlying] = authenticator
        # Of binds that follow alone: on this node the folder keeps others out.
        socket.curve_server, socket.curve_secretkey = True, self._listeners.secret
        # A node that is cut off ends no connection, and would go on being given a part of the requests.
        socket.heartbeat_ivl, socket.heartbeat_timeout = HEARTBEAT_MS, SILENT_MS
        socket.setsockopt(zmq.USE_FD, os.dup(self._listeners.ports[name]))  # the socket closes its own
        socket.bind("tcp://127.0.0.1:*")  # an address that is not looked at
        socket.setsockopt(zmq.USE_FD, -1)

    def close(self) -> None:
        """May be called more than once."""
        while self._authenticators:
            self._authenticators.popitem()[1].stop()
