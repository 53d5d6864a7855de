from __future__ import annotations

import socket

import pytest

from actors.communicator.process_group import join, open_store
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
