"""Rendezvous and the gloo process group: the one file that knows torch.distributed's set-up.

The group is made without ``init_process_group``: nothing global is set, and the network interface is the
caller's choice rather than whatever the host name resolves to.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from raylaunch.errors import CollectiveAborted, RankFault


@dataclass
class StoreServer:
    """The rendezvous store, bound and serving.

    Attributes:
        host: address that it is bound to, and that ranks connect to.
        port: its port.
        store: keeps the server alive.
    """

    host: str
    port: int
    store: dist.TCPStore | None

    @property
    def address(self) -> str:
        """``host:port``, to be told to the other ranks."""
        return f"{self.host}:{self.port}"

    def close(self) -> None:
        """Stops serving. Ranks that still use the store get connection errors."""
        self.store = None


@dataclass
class JoinedGroup:
    """A rank's membership in a process group.

    Attributes:
        group: the gloo process group.
        store: this rank's own connection to the store.
        rank, world_size: place in the group.
    """

    group: dist.ProcessGroupGloo | None
    store: dist.Store | None
    rank: int
    world_size: int

    def close(self) -> None:
        """Leaves the group; works that still run end in an error. May be called more than once."""
        if self.group is not None:
            self.group.abort()
        self.group = self.store = None


def open_store(bind_host: str, port: int = 0, timeout_s: float = 60.0) -> StoreServer:
    """Binds the store on rank 0, before anybody is told its address, on that address only.

    Args:
        bind_host: this node's address, as the other ranks reach it.
        port: 0 lets the system choose.
        timeout_s: seconds that a request to the store may take.

    Raises:
        RankFault: F10 if the port is taken or the address is not this node's.
    """
    family = socket.AF_INET6 if ":" in bind_host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((bind_host, port))
        listener.listen(1024)
        bound = listener.getsockname()[1]
    except OSError as error:
        listener.close()
        what = "the port is taken" if error.errno == errno.EADDRINUSE else str(error)
        raise RankFault("F10", f"cannot bind the rendezvous store to {bind_host}:{port}: {what}") from error
    store = dist.TCPStore(
        bind_host,
        bound,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),  # the store owns it from here on
    )
    return StoreServer(bind_host, bound, store)


def join(address: str, rank: int, world_size: int, timeout_s: float, host: str, name: str = "raylaunch") -> JoinedGroup:
    """Joins the gloo group; returns when all ranks have.

    Args:
        address: the store's ``host:port``.
        rank, world_size: place in the group.
        timeout_s: seconds for joining, and for a collective.
        host: this rank's own address: gloo listens there.
        name: tells groups in one store apart.

    Raises:
        RankFault: F10 if the store cannot be reached, or not all ranks come in time.
    """
    store_host, _, port = address.rpartition(":")
    timeout = timedelta(seconds=timeout_s)
    try:
        client = dist.TCPStore(store_host, int(port), is_master=False, timeout=timeout, wait_for_workers=False)
        store = dist.PrefixStore(name, client)
        options = dist.ProcessGroupGloo._Options()
        options._timeout = timeout
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
        group = dist.ProcessGroupGloo(store, rank, world_size, options)
    except (RuntimeError, ValueError) as error:
        raise RankFault("F10", f"rank {rank}: cannot join the group of {world_size} at {address}: {error}") from error
    return JoinedGroup(group, store, rank, world_size)


def connect_store(address: str, timeout_s: float) -> dist.TCPStore:
    """A connection to the store at ``host:port``. Raises RankFault F10 if it does not answer."""
    host, _, port = address.rpartition(":")
    try:
        timeout = timedelta(seconds=timeout_s)
        return dist.TCPStore(host, int(port), is_master=False, timeout=timeout, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        raise RankFault("F10", f"the rendezvous store at {address} does not answer: {error}") from error


class NotOpened(RankFault):
    """A kind of communicator cannot be opened; every rank of the group raises this alike."""


def opened_alike(store: dist.Store, rank: int, world_size: int, problem: str, open_s: float) -> None:
    """Tells the peers whether this rank has opened a communicator (``problem`` is ""), and waits for what they say.

    Args:
        store: the communicator's own part of the rendezvous store.
        open_s: seconds that a peer may take to find out; half of them more are waited for its word.

    Raises:
        NotOpened: a rank has not; the first one is named.
        CollectiveAborted: a peer says nothing.
    """
    try:
        store.set(f"opened/{rank}", problem)
        store.wait([f"opened/{peer}" for peer in range(world_size)], timedelta(seconds=1.5 * open_s))
        problems = [store.get(f"opened/{peer}").decode() for peer in range(world_size)]
    except RuntimeError as error:
        raise CollectiveAborted(None, f"rank {rank}: a peer does not say whether it is connected: {error}") from error
    for peer, theirs in enumerate(problems):
        if theirs:
            raise NotOpened("F16", f"on rank {peer}: {theirs}")
