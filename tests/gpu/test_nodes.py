"""SGLang's ranks on several Ray nodes with some of this host's GPUs each; nothing takes the nodes for one host."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.gpu.conftest import gpus
from tests.gpu.shapes import make_model
from tests.gpu.test_sglang import LAYERS, MODELS, config_for, installed
from tests.nodes.hosts import Hosts, can_make_hosts
from tests.nodes.test_sglang import Server

__all__ = ["installed"]  # the fixture skips where SGLang is not installed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(580),
    pytest.mark.skipif(not can_make_hosts(), reason="needs the right to make network namespaces"),
]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_on_two_hosts_reduce_over_the_network(ranks: int, tmp_path: Path) -> None:
    """The driver is on a head without a GPU. A real NCCL group over sockets, verified; nothing is registered."""
    if gpus() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus())))).split(",")[:ranks]
    half = ranks // 2
    model = make_model(tmp_path / "m", MODELS[0], LAYERS, tokenizer=True)
    settings = ("parallel.nodes=2", "communicator.kind=auto", "recovery.rebuilds=0")
    with Hosts(
        workers=2,
        gpus={1: ",".join(visible[:half]), 2: ",".join(visible[half:])},
        more={"HOME": os.environ["HOME"], "NCCL_DEBUG": "INFO"},
    ) as hosts:
        with Server(hosts, config_for(model, *settings, ranks=ranks)) as server:
            server.wait_ready()
            assert [len(hosts.ranks(host)) for host in (0, 1, 2)] == [0, half, half]
            long = server.run("long", server.url)
            assert len(long[0]) == 4
            assert long[0] == long[1]
            said = " ".join(server.log.read_text().split())
            assert f"{ranks} ranks on 2 nodes, over eth0" in said
            logs = [log.read_text(errors="replace") for log in hosts.folder.rglob("worker-*") if log.is_file()]
            assert sum("NET/Socket" in log for log in logs) == ranks
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(90) == 0
        assert [hosts.ranks(host) for host in (1, 2)] == [[], []]
