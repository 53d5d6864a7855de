from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from raylaunch_actors.communicator.process_group import NotOpened, connect_store, join, open_store, opened_alike

from raylaunch.errors import RankFault


def test_f10_a_taken_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RankFault, match=f"127.0.0.1:{port}: the port is taken") as caught:
            open_store("127.0.0.1", port)
    assert caught.value.code == "F10"


def test_f10_an_address_of_another_host():
    with pytest.raises(RankFault, match=r"192\.0\.2\.1"):
        open_store("192.0.2.1")


def test_the_store_listens_on_its_address_only_and_serves():
    server = open_store("127.0.0.1")
    assert server.address == f"127.0.0.1:{server.port}"
    with open("/proc/net/tcp") as file:
        listening = [line.split()[1] for line in file if line.split()[3] == "0A"]
    assert [a for a in listening if a.endswith(f":{server.port:04X}")] == [f"0100007F:{server.port:04X}"]
    joined = join(server.address, 0, 1, 10, "127.0.0.1")
    joined.store.set("key", "value")
    assert joined.store.get("key") == b"value"
    joined.close()
    joined.close()
    server.close()


def test_f10_peers_that_never_come():
    server = open_store("127.0.0.1")
    with pytest.raises(RankFault, match="rank 0: cannot join the group of 2") as caught:
        join(server.address, 0, 2, 1, "127.0.0.1")
    assert caught.value.code == "F10"
    server.close()


def test_a_rank_that_connected_waits_for_a_peer_that_takes_its_time_to_fail():
    server, open_s = open_store("127.0.0.1"), 0.4

    def rank(number):
        store = connect_store(server.address, open_s)
        if number == 1:
            time.sleep(1.2 * open_s)  # as long as it may take, and a little for being busy
        with pytest.raises(NotOpened, match="on rank 1: no way") as caught:
            opened_alike(store, number, 2, "no way" if number == 1 else "", open_s)
        return caught.value.code

    with ThreadPoolExecutor(2) as ranks:
        assert list(ranks.map(rank, (0, 1))) == ["F16", "F16"]
    server.close()
