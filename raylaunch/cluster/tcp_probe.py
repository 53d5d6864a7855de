"""Whether a host takes a connection: its kernel answers, however busy or stopped the processes there are."""

from __future__ import annotations

import contextlib
import select
import socket


class TcpProbe:
    """A connection that is being made, to nobody's harm: it is closed without a word. Never waits unless asked to."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socket.setblocking(False)
        with contextlib.suppress(OSError):  # it goes on, or its error is read later
            self._socket.connect((host, port))

    def answered(self, wait_s: float) -> bool:
        """Whether it was taken, at the latest after ``wait_s``; no more may be asked then."""
        with self._socket:
            poll = select.poll()  # select() takes no descriptor from 1024 on, which a busy server's may be
            poll.register(self._socket, select.POLLOUT)
            poll.poll(max(0.0, wait_s) * 1000)
            with contextlib.suppress(OSError):
                self._socket.getpeername()  # only a connection has one
                return True
        return False

    def close(self) -> None:
        self._socket.close()
