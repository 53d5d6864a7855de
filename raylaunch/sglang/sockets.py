"""Where SGLang's processes meet: names made by the driver before anything is started, and who may be there."""

from __future__ import annotations

import secrets
import shutil
import socket
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import zmq

from raylaunch.errors import LaunchError
from raylaunch.frontends.base import Meeting
from raylaunch.sglang.listeners import Listeners
from raylaunch.wire import CurveKeys, SglangSockets

SHARED_MEMORY = Path("/dev/shm")
FROM_RANKS = ("tokenizer", "scheduler_input", "detokenizer", "loads")
"""What rank 0 connects to. It has other names too, at which nobody is."""


@dataclass
class SocketFolder:
    """A folder that only this user can open, holding one engine's sockets, and the TCP ports at which ranks on other
    nodes reach the same. ``close`` removes it, and the shared memory that SGLang names after the engine: a rank that is
    killed leaves it there.

    Attributes:
        names: of the sockets, on this node.
        listeners: the driver's end of the ports; None as long as nobody else could need them.
    """

    path: Path | None = None
    names: SglangSockets | None = None
    listeners: Listeners | None = None
    _instance: str = field(default="", repr=False)
    _away: SglangSockets | None = field(default=None, repr=False)
    _met: bool = field(default=False, repr=False)
    _ports: list[socket.socket] = field(default_factory=list, repr=False)

    def open(self) -> SglangSockets:
        """Makes the folder and the names in it."""
        # Unix sockets have short names only: not below a long TMPDIR.
        self.path = Path(tempfile.mkdtemp(prefix="raylaunch-", dir="/tmp"))
        self._instance = secrets.token_hex(6)
        metrics_folder = self.path / "prometheus"
        metrics_folder.mkdir()
        tokenizer, scheduler_input, detokenizer, loads, rpc, metrics = (
            f"ipc://{self.path / name}" for name in (*FROM_RANKS, "rpc", "metrics")
        )
        self.names = SglangSockets(
            tokenizer, scheduler_input, detokenizer, loads, rpc, metrics, self._instance, str(metrics_folder)
        )
        return self.names

    def meet(self, where: Meeting) -> SglangSockets:
        """What ranks must know to meet the driver: names of files on its own node, ports and keys on another.

        Whether there are ports is decided once, before SGLang's sockets are bound.

        Raises:
            LaunchError: a port cannot be bound, or there are none and rank 0 is on another node now.
        """
        first, names = not self._met, self.names
        self._met = True
        assert names is not None
        if first and (where.may_move or not where.same_node):
            self._away = self._listen(where.address, names)
        if where.same_node:
            return names
        if self._away is None:
            text = "rank 0 was placed on another node, and this driver was started where there was none: start it again"
            raise LaunchError(text, "F13", "PLACE")
        return self._away

    def _listen(self, address: str, names: SglangSockets) -> SglangSockets:
        """Binds a port for each name that ranks use. Their keys are of this engine alone."""
        server, server_secret = zmq.curve_keypair()
        public, secret = zmq.curve_keypair()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        host = f"[{address}]" if family == socket.AF_INET6 else address
        urls, numbers = {}, {}
        try:
            for name in FROM_RANKS:
                port = socket.create_server((address, 0), family=family)
                port.setblocking(False)
                self._ports.append(port)
                urls[name] = f"tcp://{host}:{port.getsockname()[1]}"
                numbers[getattr(names, name)] = port.fileno()
        except OSError as error:
            text = f"the driver cannot listen on {address}, by which Ray knows its node: {error}"
            raise LaunchError(text, phase="PLACE") from error
        self.listeners = Listeners(numbers, server_secret, public)
        return replace(names, **urls, keys=CurveKeys(server, public, secret))

    def close(self) -> None:
        """Removes what was made, once nobody uses it any more. May be called more than once."""
        path, self.path = self.path, None
        for port in self._ports:
            port.close()
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
            for file in SHARED_MEMORY.glob(f"sglang_loads_{self._instance}*"):
                file.unlink(missing_ok=True)
