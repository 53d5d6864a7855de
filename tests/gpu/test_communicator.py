"""Every kind of all-reduce in a launch on GPUs, and the sizes at which one hands over to the next."""

from __future__ import annotations

import time
from functools import partial
from unittest import mock

import pytest
import torch
from raylaunch_actors.communicator.nccl import NcclAllReduce
from raylaunch_actors.communicator.process_group import NotOpened, connect_store, open_store
from raylaunch_actors.graphs.probes import QUEUED, Probes

from raylaunch import Engine, LaunchConfig, LaunchError
from raylaunch.protocol import CommunicatorFacts, Gate, Route
from tests.communicator.ranks import Channel, check, run
from tests.gpu.conftest import gpus
from tests.gpu.test_faults import OTHER_HOST, OVER_SOCKETS

pytestmark = pytest.mark.gpu

ROW = 128 * 4  # bytes of one token's activation: the tiny model has 128 elements, in float32
SMALL = "communicator.max_bytes=4096"  # eight tokens


def launched(config: LaunchConfig) -> tuple[str, CommunicatorFacts, list[int]]:
    """An answer, what the ranks agreed on, and how many inputs each registered."""
    with Engine(config) as engine:
        text = engine.generate("12+30=", max_new_tokens=8).text
        said = [arrival.facts for arrival in engine.report.facts(Gate.CONNECTED)[0][1]]
        registered = [arrival.facts.registered for arrival in engine.report.facts(Gate.REGISTERED)[-1][1]]
    assert said[0] == said[1]
    return text, said[0], registered


def test_topology_is_known(two_ranks: LaunchConfig) -> None:
    text, facts, registered = launched(two_ranks)
    assert text == "42"
    assert (facts.kind, facts.routes) == ("sgl_kernel", (Route(None, "sgl_kernel"),))
    assert ("share one GPU" in facts.reason) == (gpus() == 1)
    assert registered == [24, 24]


def test_large_messages_go_to_nccl_inside_the_graphs(two_ranks: LaunchConfig) -> None:
    """Only shapes below the limit register inputs; the graphs of the others hold NCCL's kernels and register none."""
    config = (
        two_ranks.override(SMALL) if gpus() > 1 else two_ranks.override(SMALL, OVER_SOCKETS, f"faults=[{OTHER_HOST}]")
    )
    text, facts, registered = launched(config)
    assert text == "42"
    assert facts.routes == (Route(4096, "sgl_kernel"), Route(None, "nccl"))
    below = sum(shape * ROW <= 4096 for shape in (8, 32, 128, 2, 8, 32))
    assert registered == [4 * below] * 2


def test_large_messages_are_split_where_there_is_no_nccl(two_ranks: LaunchConfig) -> None:
    if gpus() > 1:
        pytest.skip("on two GPUs there is NCCL")
    text, facts, registered = launched(two_ranks.override(SMALL))
    assert text == "42"
    assert facts.routes == (Route(None, "sgl_kernel"),)
    assert "in parts, as nccl is impossible" in facts.reason
    assert registered[0] > 24


def test_the_library_alone(two_ranks: LaunchConfig) -> None:
    config = two_ranks.replace({"communicator.kind": "library"})
    if gpus() == 1:
        with pytest.raises(LaunchError, match="which NCCL does not take") as caught:
            Engine(config).start()
        assert (caught.value.code, caught.value.phase) == ("F18", "CONNECT")
        config = config.override(OVER_SOCKETS, f"faults=[{OTHER_HOST}]")
    text, facts, registered = launched(config)
    assert (text, facts.kind, registered) == ("42", "nccl", [0, 0])


def test_auto_measures_every_kind_and_takes_the_fastest(two_ranks: LaunchConfig) -> None:
    config = two_ranks.replace({"communicator.kind": "auto"})
    if gpus() == 1:
        config = config.override(OVER_SOCKETS, f"faults=[{OTHER_HOST}]")
    text, facts, _ = launched(config)
    assert text == "42"
    assert [one.nbytes for one in facts.measured] == [shape * ROW for shape in (2, 8, 32, 128)]
    for one in facts.measured:
        assert {"sgl_kernel", "nccl"} <= set(one.microseconds)
        assert one.chosen == min(one.microseconds, key=one.microseconds.__getitem__)


def test_auto_without_graphs_closes_what_it_does_not_take(two_ranks: LaunchConfig) -> None:
    config = two_ranks.replace({"communicator.kind": "auto", "capture.enabled": False})
    if gpus() == 1:
        config = config.override(OVER_SOCKETS, f"faults=[{OTHER_HOST}]")
    with Engine(config) as engine:
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"
        assert "fastest" in engine.report.table(200)


def test_a_launch_takes_no_part_of_what_is_timed() -> None:
    """Runs of a tenth of the length take a tenth of the time."""
    probes = Probes({}, (), torch.float32, torch.device("cuda"))
    short, long = (probes.measure(partial(torch.cuda._sleep, cycles), 5 * QUEUED) for cycles in (50_000, 500_000))
    assert 8.5 < long / short < 10.5


def test_symmetric_memory_or_the_reason_why_not(two_ranks: LaunchConfig) -> None:
    config = two_ranks.replace({"communicator.kind": "symmetric_memory"})
    if gpus() == 1:
        with pytest.raises(LaunchError, match="share one GPU"):
            Engine(config).start()
        return
    text, facts, registered = launched(config)
    assert (text, facts.kind, registered) == ("42", "symmetric-one-shot", [0, 0])


class Unsure(NcclAllReduce):
    """Says that it could not connect after it has."""

    def open(self) -> None:
        with mock.patch("torch.cuda.synchronize", side_effect=RuntimeError("no way")):
            super().open()


def _left(channel: Channel) -> tuple[str, bool]:
    torch.cuda.set_device(channel.rank)
    server = open_store("127.0.0.1") if channel.rank == 0 else None
    store = connect_store(channel.exchange(server.address if server else None)[0], 20)
    kind = Unsure if channel.rank == 1 else NcclAllReduce
    communicator = kind(store, channel.rank, 2, deadline_s=2, open_s=20)
    try:
        communicator.open()
    except NotOpened as fault:
        time.sleep(5)  # longer than NCCL's watchdog lets a collective wait
        channel.exchange(None)
        return fault.message, communicator._group is None
    return "", False


@pytest.mark.skipif(gpus() < 2, reason="NCCL needs a GPU for each rank")
def test_a_group_that_a_peer_could_not_join_is_left() -> None:
    for message, is_gone in check(run(2, _left)):
        assert message == "on rank 1: NCCL does not connect: no way"
        assert is_gone
