"""Where SGLang's processes meet: a folder on one node, ports with keys between nodes."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from raylaunch.errors import LaunchError
from raylaunch.frontends.base import Meeting
from raylaunch.sglang import listeners, sockets
from raylaunch.sglang.listeners import Doors
from raylaunch.sglang.sockets import SocketFolder

HERE = "127.0.0.1"


def test_what_was_made_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(sockets, "SHARED_MEMORY", tmp_path)
    folder = SocketFolder()
    made = folder.open()
    mine, other = tmp_path / f"sglang_loads_{made.instance}_ab.shm", tmp_path / "sglang_loads_other_ab.shm"
    for file in (mine, other):
        file.touch()
    path = Path(made.metrics_folder).parent
    assert path.stat().st_mode & 0o777 == 0o700
    folder.close()
    folder.close()
    assert not path.exists()
    assert (mine.exists(), other.exists()) == (False, True)


def test_two_engines_have_names_of_their_own():
    folders = SocketFolder(), SocketFolder()
    first, second = (folder.open() for folder in folders)
    for folder in folders:
        folder.close()
    assert first.instance != second.instance
    assert first.scheduler_input != second.scheduler_input


@pytest.fixture
def folder():
    one = SocketFolder()
    one.open()
    yield one
    one.close()


@pytest.mark.parametrize(
    ("meetings", "transports", "ports"),
    [
        ([Meeting(True, HERE)], ["ipc"], 0),
        ([Meeting(False, HERE)], ["tcp"], 4),
        ([Meeting(False, HERE), Meeting(True, HERE), Meeting(False, HERE)], ["tcp", "ipc", "tcp"], 4),
        ([Meeting(True, HERE, may_move=True), Meeting(False, HERE)], ["ipc", "tcp"], 4),
        ([Meeting(False, "::1")], ["tcp"], 4),
    ],
)
def test_files_on_one_node_and_ports_between_nodes(folder, meetings, transports, ports):
    told = [folder.meet(one) for one in meetings]
    for names, transport in zip(told, transports, strict=True):
        assert names.scheduler_input.startswith(f"{transport}://")
        assert (names.keys is None) == (transport == "ipc")
        assert names.instance == folder.names.instance
    assert len(folder.listeners.ports if folder.listeners else ()) == ports


def test_a_rank_that_has_moved_where_nobody_listens(folder):
    folder.meet(Meeting(True, HERE))
    with pytest.raises(LaunchError, match="rank 0 was placed on another node, and this driver was started") as caught:
        folder.meet(Meeting(False, HERE, may_move=True))
    assert caught.value.code == "F13"


def test_an_address_that_is_not_this_nodes(folder):
    with pytest.raises(LaunchError, match=r"the driver cannot listen on 203\.0\.113\.1"):
        folder.meet(Meeting(False, "203.0.113.1"))


def test_keys_are_shown_nowhere(folder):
    names = folder.meet(Meeting(False, HERE))
    shown = f"{names} {folder} {folder.listeners} {names.keys}"
    keys = [names.keys.server, names.keys.public, names.keys.secret, folder.listeners.secret, folder.listeners.peer]
    assert not any(key.decode() in shown for key in keys)
    assert len(set(keys)) == 4  # the ranks' public key is at both ends
    other = SocketFolder()
    other.open()
    assert other.meet(Meeting(False, HERE)).keys.secret != names.keys.secret
    other.close()


# ---- who is heard


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def made(context, kind, endpoint=None, bind=True):
    """A socket as SGLang makes it."""
    one = context.socket(kind)
    (one.bind if bind else one.connect)(endpoint)
    return one


def with_keys(context, kind, url, server, public, secret):
    one = context.socket(kind)
    one.curve_serverkey, one.curve_publickey, one.curve_secretkey = server, public, secret
    one.connect(url)
    return one


@contextmanager
def opened(folder, kind, name):
    """The driver's socket of a name, and a context for its peers; all closed at the end."""
    driver, peers = zmq.Context(), zmq.Context()
    doors = Doors(folder.listeners)
    bound = doors.on(made)(driver, kind, name)
    try:
        yield bound, peers
    finally:
        peers.destroy(linger=0)
        bound.close(linger=0)
        doors.close()
        doors.close()
        driver.term()


def test_nobody_without_the_keys_is_heard(folder, tmp_path):
    """With the pickles that SGLang would unpickle."""
    away = folder.meet(Meeting(False, HERE))
    threads = set(threading.enumerate())
    keys, canary = away.keys, tmp_path / "canary"
    with opened(folder, zmq.PULL, folder.names.detokenizer) as (pull, peers):
        strangers = [made(peers, zmq.PUSH, away.detokenizer, bind=False)]
        strangers.append(with_keys(peers, zmq.PUSH, away.detokenizer, keys.server, *zmq.curve_keypair()))
        for one in strangers:
            one.send(pickle.dumps(Canary(canary)))
        plain = socket.create_connection((HERE, int(away.detokenizer.rpartition(":")[2])))
        plain.sendall(b"\xff" + pickle.dumps(Canary(canary)))
        rank = with_keys(peers, zmq.PUSH, away.detokenizer, keys.server, keys.public, keys.secret)
        local = made(peers, zmq.PUSH, folder.names.detokenizer, bind=False)
        heard = []
        for one in (rank, local):
            one.send(pickle.dumps("an answer"))
            assert pull.poll(5000)
            heard.append(pickle.loads(pull.recv()))
        while pull.poll(500):
            heard.append(pickle.loads(pull.recv()))
        plain.close()
    assert heard == ["an answer", "an answer"]
    assert not canary.exists()
    assert set(threading.enumerate()) <= threads


def test_nobody_without_the_keys_hears_a_request(folder):
    """A socket that pushes would give each peer a part of them."""
    away = folder.meet(Meeting(False, HERE))
    keys = away.keys
    with opened(folder, zmq.PUSH, folder.names.scheduler_input) as (push, peers):
        stranger = made(peers, zmq.PULL, away.scheduler_input, bind=False)
        rank = with_keys(peers, zmq.PULL, away.scheduler_input, keys.server, keys.public, keys.secret)
        push.send(b"0")
        assert rank.poll(5000)
        assert not stranger.poll(300)
        for number in range(1, 5):
            push.send(b"%d" % number)
        assert [rank.recv() for _ in range(5)] == [b"%d" % number for number in range(5)]
        assert not stranger.poll(100)


def test_a_port_waits_for_the_next_process(folder):
    """As for a detokenizer that is started again: ranks stay connected to the port."""
    away = folder.meet(Meeting(False, HERE))
    peers = zmq.Context()
    rank = with_keys(peers, zmq.PUSH, away.detokenizer, away.keys.server, away.keys.public, away.keys.secret)
    try:
        for said in (b"before", b"after"):
            with opened(folder, zmq.PULL, folder.names.detokenizer) as (pull, _):
                rank.send(said)
                assert pull.poll(5000)
                assert pull.recv() == said
    finally:
        peers.destroy(linger=0)


def test_a_rank_that_is_cut_off_is_given_nothing_more(folder, monkeypatch):
    """Its connection is not ended by anything, and a socket that pushes goes round."""
    monkeypatch.setattr(listeners, "HEARTBEAT_MS", 100)
    monkeypatch.setattr(listeners, "SILENT_MS", 300)
    away = folder.meet(Meeting(False, HERE))
    with opened(folder, zmq.PUSH, folder.names.scheduler_input) as (push, peers), Cable(away.scheduler_input) as cable:
        keys = away.keys.server, away.keys.public, away.keys.secret
        lost = with_keys(peers, zmq.PULL, cable.url, *keys)
        push.send(b"0")
        assert lost.poll(5000)
        lost.recv()
        cable.cut.set()
        time.sleep(1)
        successor = with_keys(peers, zmq.PULL, away.scheduler_input, *keys)
        push.send(b"1")
        assert successor.poll(5000)
        for number in range(2, 6):
            push.send(b"%d" % number)
        assert [successor.recv() for _ in range(5)] == [b"%d" % number for number in range(1, 6)]


class Cable:
    """Carries one connection to an address, until it is cut: then nothing, not even an end."""

    def __init__(self, url: str) -> None:
        self.cut = threading.Event()
        self._to = url.removeprefix("tcp://").rsplit(":", 1)
        self._listener = socket.create_server((HERE, 0))
        self.url = f"tcp://{HERE}:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = [self._listener]

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        for one in self._ends:
            one.close()

    def _accept(self):
        near = self._listener.accept()[0]
        far = socket.create_connection((self._to[0], int(self._to[1])))
        self._ends += [near, far]
        for ends in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source, target):
        with suppress(OSError):
            while data := source.recv(4096):
                if not self.cut.is_set():
                    target.sendall(data)
