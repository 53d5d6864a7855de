"""Which network interface ranks of several nodes use, and what is said where there is none."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from raylaunch_actors import interfaces
from raylaunch_actors.interfaces import choose_interface, in_words, interface_of

from raylaunch.errors import RankFault

HERE = {
    "lo": ["127.0.0.1", "::1"],
    "docker0": ["172.17.0.1"],
    "eth0": ["10.0.0.2", "fe80::1%eth0", "00:00:00:00:00:02"],
    "eth01": ["10.0.1.2", "fd00::7"],
}


@pytest.mark.parametrize(
    ("address", "name"), [("10.0.0.2", "eth0"), ("10.0.1.2", "eth01"), ("fd00::7", "eth01"), ("fe80::1", "eth0")]
)
def test_that_of_the_address_by_which_ray_knows_the_node(address: str, name: str) -> None:
    assert interface_of(address, HERE) == name


def test_f21_an_address_that_no_interface_has() -> None:
    with pytest.raises(
        RankFault, match=r"knows this node by 10\.0\.0\.9, .*: there are lo \(127\.0\.0\.1 ::1\)"
    ) as caught:
        interface_of("10.0.0.9", HERE)
    assert caught.value.code == "F21"
    assert "environment.GLOO_SOCKET_IFNAME" in caught.value.message


@pytest.mark.parametrize(
    ("nodes", "given", "chosen"),
    [
        (1, {}, {}),
        (2, {}, {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}),
        (2, {"NCCL_SOCKET_IFNAME": "ib0"}, {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "ib0"}),
    ],
)
def test_what_the_configuration_says_stays(
    nodes: int, given: dict[str, str], chosen: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dict(given)
    monkeypatch.setattr(interfaces, "os", SimpleNamespace(environ=environment))
    spec = SimpleNamespace(nodes=nodes, bind_host="127.0.0.1", device="cpu")
    choose_interface(spec)  # type: ignore[arg-type]
    assert environment == chosen
    assert in_words(spec) == ("lo (127.0.0.1)" if nodes > 1 else "")  # type: ignore[arg-type]
    assert os.environ is not environment
