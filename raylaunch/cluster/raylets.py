"""Whether Ray still has its process on a node, the raylet: it may be gone long before what runs there notices.

Ranks go on for seconds without it, and then end; Ray says so later still. So a connection to it is held open: the
kernel of its host says at once that the process has gone.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

CONNECT_S = 0.5
AGAIN_S = 5.0  # between attempts to reach a host that does not answer at all: that is not for us to tell


class Held:
    """A connection to a process that listens, on which nothing is said."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None
        self._next = 0.0
        self._gone = False

    def gone(self) -> bool:
        """Whether nobody listens there any more. Waits only where a connection must be made, and never long."""
        if not self._gone and (self._socket is None or self._closed(self._socket)):
            self.close()
            self._gone = self._refused()
        return self._gone

    def close(self) -> None:
        """Gives the connection back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _closed(self, one: socket.socket) -> bool:
        poll = select.poll()  # select() takes no descriptor from 1024 on, which a busy server's may be
        poll.register(one, select.POLLIN)
        while poll.poll(0):
            try:
                if not one.recv(4096):  # what a server says first is of no interest
                    return True
            except OSError:
                return True
        return False

    def _refused(self) -> bool:
        """Connects anew: servers close connections on which nothing is said, too."""
        if time.monotonic() < self._next:
            return False
        try:
            self._socket = socket.create_connection(self._address, timeout=CONNECT_S)
        except ConnectionRefusedError:
            return True
        except OSError:
            self._next = time.monotonic() + AGAIN_S
        return False


class RayletWatch:
    """Looks at the raylets of some nodes.

    Args:
        raylets: host and port, by node id.
    """

    def __init__(self, raylets: Mapping[str, tuple[str, int]]) -> None:
        self._held = {node: Held(*address) for node, address in raylets.items()}

    def lost(self) -> set[str]:
        """Ids of the nodes whose raylet has ended."""
        return {node for node, held in self._held.items() if held.gone()}

    def close(self) -> None:
        """Gives the connections back."""
        for held in self._held.values():
            held.close()


def raylets_of(nodes: Sequence[Mapping[str, Any]], wanted: set[str]) -> dict[str, tuple[str, int]]:
    """Host and port of the raylets of the ``wanted`` nodes.

    Args:
        nodes: what ``ray.nodes()`` says.
    """
    return {
        node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"])
        for node in nodes
        if node["NodeID"] in wanted and node["Alive"]
    }
