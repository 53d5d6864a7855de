"""How the agent of a node steps the node's ranks: over a connection to each, which costs a fraction of a call of Ray's.

Releases and reports pass the agent as bytes: it imports nothing of what ranks say to one another.
"""

from __future__ import annotations

import contextlib
import pickle
import secrets
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener

from ray import cloudpickle

from raylaunch.errors import RankFault
from raylaunch.protocol import Arrival
from raylaunch_actors.gate import RankGate

NAME_BYTES = 4  # of a rank's first message, its number


class NodeGates:
    """The agent's end: a thread for each rank sends it a release and waits for its report, again and again."""

    def __init__(self) -> None:
        self._ranks: set[int] = set()
        self._gone: set[int] = set()
        self._reports: dict[int, bytes] = {}
        self._leave, self._number = b"", 0
        self._changed = threading.Condition()

    def listen(self) -> tuple[str, bytes]:
        """Takes ranks in from now on. Returns the name of a socket, one without a file, and the key to it.

        Raises:
            OSError: this system has no such sockets.
        """
        address, key = f"\0raylaunch-{secrets.token_hex(16)}", secrets.token_bytes(32)
        listener = Listener(address, "AF_UNIX", backlog=128, authkey=key)
        threading.Thread(target=self._accept, args=(listener,), name="gates", daemon=True).start()
        return address, key

    def step(self, leave: bytes) -> dict[int, bytes]:
        """Releases all ranks. Returns what they report, by rank, once all have done so, or one fails or is gone."""
        with self._changed:
            self._leave, self._reports = leave, {}
            self._number += 1
            self._changed.notify_all()
            self._changed.wait_for(self._settled)
            return dict(self._reports)

    def reports(self, wait_s: float) -> dict[int, bytes]:
        """What has come in since the last release, after up to ``wait_s`` for ranks that have not reported."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._reports) == len(self._ranks), wait_s)
            return dict(self._reports)

    def _settled(self) -> bool:
        return len(self._reports) == len(self._ranks) or bool(self._gone) or any(map(failed, self._reports.values()))

    def _next(self, number: int) -> tuple[int, bytes]:
        """The release after this one, once there is one, and its number."""
        with self._changed:
            self._changed.wait_for(lambda: self._number != number)
            return self._number, self._leave

    def _accept(self, listener: Listener) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError, AuthenticationError):
                connection = listener.accept()
                threading.Thread(target=self._serve, args=(connection,), name="gate", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        rank, number = int.from_bytes(connection.recv_bytes(NAME_BYTES), "big"), 0
        with self._changed:
            self._ranks.add(rank)
        try:
            connection.send_bytes(b"")
            while True:
                number, leave = self._next(number)
                connection.send_bytes(leave)
                report = connection.recv_bytes()
                with self._changed:
                    self._reports[rank] = report
                    if self._settled():
                        self._changed.notify_all()
        except (OSError, EOFError):
            with self._changed:
                self._gone.add(rank)
                self._changed.notify_all()


def attach(gate: RankGate, address: str, key: bytes) -> None:
    """The rank's end: from now on its node's agent may step it as well as the driver; returns when the agent knows."""
    connection = Client(address, "AF_UNIX", authkey=key)
    connection.send_bytes(gate.rank.to_bytes(NAME_BYTES, "big"))
    connection.recv_bytes()
    threading.Thread(target=_stepped, args=(gate, connection), name="gate", daemon=True).start()


def _stepped(gate: RankGate, connection: Connection) -> None:
    with contextlib.suppress(OSError, EOFError), connection:  # without its agent the driver steps this rank itself
        while True:
            release = pickle.loads(connection.recv_bytes())
            try:
                report = gate.advance(release)
            except RankFault as error:
                report = gate.fail(error)
            connection.send_bytes(bytes([isinstance(report, Arrival)]) + cloudpickle.dumps(report))


def failed(report: bytes) -> bool:
    """Whether a report is that of a rank that cannot go on."""
    return not report[0]
