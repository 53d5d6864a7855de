"""Messages to the ranks that wait for somebody to take them, and must not reach those of the next group."""

from __future__ import annotations

import asyncio
from typing import Any


class Recallable:
    """A socket of ``zmq.asyncio`` whose messages can be taken back as long as no peer is there. What is sent when ranks
    have died, and nobody knows yet, would go to the next ones as soon as they connect.

    Args:
        socket: has all else that is asked of this one.
    """

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._waiting = set[asyncio.Future[Any]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def send(self, *arguments: Any, **named: Any) -> Any:
        return self._kept(self._socket.send(*arguments, **named))

    def send_pyobj(self, *arguments: Any, **named: Any) -> Any:
        return self._kept(self._socket.send_pyobj(*arguments, **named))

    def take_back(self, error: Exception) -> None:
        """None of those that wait will be sent: whoever awaits it is told ``error``."""
        for sending in list(self._waiting):
            sending.set_exception(error)
            sending.exception()  # most are awaited by nobody, which asyncio would say

    def _kept(self, sending: asyncio.Future[Any]) -> asyncio.Future[Any]:
        if not sending.done():
            self._waiting.add(sending)
            sending.add_done_callback(self._waiting.discard)
        return sending
