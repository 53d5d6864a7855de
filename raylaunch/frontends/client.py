"""The driver's end of the sockets to rank 0: requests go out, outputs come in on one thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import zmq

from raylaunch import wire
from raylaunch.errors import RequestFailed

if TYPE_CHECKING:
    from raylaunch_actors.reference.channel import Offer

log = logging.getLogger(__name__)

POLL_MS = 200


class RankZeroClient:
    """Talks to rank 0. ``submit`` and ``abort`` may be called from any thread; outputs arrive on the client's own."""

    def __init__(self, offer: Offer, deliver: Callable[[list[wire.Output]], None]) -> None:
        self._offer, self._deliver = offer, deliver
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def open(self) -> None:
        """Connects, and starts the thread that receives."""
        from raylaunch_actors.reference.channel import connect

        self._context = zmq.Context()
        self._requests = connect(self._context, zmq.PUSH, self._offer.requests, self._offer)
        self._outputs = connect(self._context, zmq.PULL, self._offer.outputs, self._offer)
        self._thread = threading.Thread(target=self._receive, name="raylaunch-outputs", daemon=True)
        self._thread.start()

    def send(self, message: wire.Submit | wire.Abort | wire.Stop | wire.Verify) -> None:
        """Hands a message to the socket's own thread; never waits. Raises :class:`RequestFailed` once it is closed."""
        data = wire.encode(message)
        with self._lock:
            if self._closed.is_set():
                raise RequestFailed("the engine is shut down")
            self._requests.send(data, zmq.NOBLOCK)

    def close(self) -> None:
        """Ends the thread and the sockets. What has not been delivered is dropped. May be called twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        with self._lock:
            self._requests.close(linger=0)
            self._outputs.close(linger=0)
            self._context.term()

    def _receive(self) -> None:
        while not self._closed.is_set():
            if self._outputs.poll(POLL_MS):
                try:
                    self._deliver(wire.decode_outputs(self._outputs.recv()))
                except Exception:
                    # One bad message, or one caller's error, must not silence all the others.
                    log.exception("outputs of the ranks could not be delivered")
