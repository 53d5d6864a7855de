"""The network interface of a rank whose group spans nodes: that of the address by which Ray knows its node.

What gloo and NCCL would choose by themselves may be loopback or a container's bridge, over which no other node answers
(https://github.com/vllm-project/vllm/issues/7074).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from raylaunch.errors import RankFault
from raylaunch_actors.spec import RankSpec

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def interface_of(address: str, interfaces: Mapping[str, Iterable[str]]) -> str:
    """The interface that has an address.

    Args:
        interfaces: addresses by interface; one of IPv6 may be followed by ``%`` and its interface.
    Raises:
        RankFault: F21: none has it.
    """
    for name, addresses in interfaces.items():
        if any(one.partition("%")[0] == address for one in addresses):
            return name
    there = ", ".join(f"{name} ({' '.join(addresses)})" for name, addresses in interfaces.items())
    text = f"Ray knows this node by {address}, which no network interface here has: there are {there}; set "
    raise RankFault("F21", f"{text}environment.{GLOO} and environment.{NCCL}")


def choose_interface(spec: RankSpec) -> None:
    """Sets this process's variables for gloo and NCCL; those of the configuration stay. Raises RankFault F21."""
    if spec.nodes == 1 or {GLOO, NCCL} <= os.environ.keys():
        return
    import psutil

    name = interface_of(
        spec.bind_host, {name: [one.address for one in all_of] for name, all_of in psutil.net_if_addrs().items()}
    )
    os.environ.setdefault(GLOO, name)
    os.environ.setdefault(NCCL, f"={name}")  # and none that begins like it


def in_words(spec: RankSpec) -> str:
    """What was chosen, such as ``eth0 (10.0.0.2)``; "" for ranks of one node."""
    name = os.environ.get(NCCL if spec.device == "cuda" else GLOO, "").removeprefix("=")
    return f"{name} ({spec.bind_host})" if spec.nodes > 1 else ""
