"""From offers to a communicator, with real processes: what all agree on, and what is left out by all."""

from __future__ import annotations

import pytest
import torch

from actors.communicator.cpu import CpuCommunicators
from actors.communicator.link import Link
from actors.communicator.process_group import NotOpened, connect_store, open_store, opened_alike
from actors.communicator.settings import Settings
from tests.communicator.ranks import Channel, check, run

SIZES = (1024, 4096)


def settings(channel: Channel, wanted: str) -> Settings:
    return Settings(channel.rank, channel.world_size, wanted, SIZES, 1 << 16, 64, 1 << 20, 20, "127.0.0.1")


class NoGloo(CpuCommunicators):
    """Ranks of which rank 1 cannot open gloo."""

    def open(self, kind, offers, store):
        if kind == "gloo":
            problem = "it is not there" if self.settings.rank == 1 else ""
            opened_alike(connect_store(store, 20), self.settings.rank, self.settings.world_size, problem)
        return super().open(kind, offers, store)


def linked(channel: Channel, wanted: str, graphs: bool, kinds: type[CpuCommunicators]):
    server = open_store("127.0.0.1") if channel.rank == 0 else None
    address = channel.exchange(server.address if server else None)[0]
    link = Link(settings(channel, wanted), kinds(settings(channel, wanted)))
    try:
        link.settle(channel.exchange(link.offer()), address)
        if wanted == "auto":
            inputs = channel.exchange(link.probe(torch.float32, torch.device("cpu"), graphs))
            link.decide(channel.exchange(link.time(inputs, lambda activity: None)))
        total = link.communicator.all_reduce(torch.full((4,), channel.rank + 1.0))
        return link.facts(), total.tolist()
    finally:
        channel.exchange(None)
        link.close()


@pytest.mark.parametrize(
    ("wanted", "graphs", "kinds"),
    [
        ("auto", True, None),
        pytest.param("auto", False, None, marks=pytest.mark.slow),
        pytest.param("custom", True, {"shared-memory"}, marks=pytest.mark.slow),
        pytest.param("library", True, {"gloo"}, marks=pytest.mark.slow),
    ],
)
def test_all_ranks_agree_and_reduce(wanted, graphs, kinds):
    (facts, total), other = check(run(2, linked, wanted, graphs, CpuCommunicators))
    assert (facts, total) == other
    assert total == [3.0] * 4
    assert kinds is None or {route.kind for route in facts.routes} == kinds
    assert [one.nbytes for one in facts.measured] == (list(SIZES) if wanted == "auto" else [])
    for one in facts.measured:
        assert set(one.microseconds) == {"shared-memory", "gloo"}


def test_what_a_rank_cannot_open_is_left_out_on_all_of_them_and_told():
    (facts, total), other = check(run(2, linked, "auto", True, NoGloo))
    assert (facts, total) == other
    assert (facts.kind, total) == ("shared-memory", [3.0] * 4)
    assert "gloo is not: on rank 1: it is not there" in facts.reason
    assert set(facts.measured[0].microseconds) == {"shared-memory"}


@pytest.mark.slow
def test_f16_what_was_asked_for_and_cannot_be_opened_is_an_error_on_every_rank():
    for error in run(2, linked_to_nothing):
        assert isinstance(error, NotOpened)
        assert "on rank 1: it is not there" in str(error)


def linked_to_nothing(channel: Channel):
    return linked(channel, "library", True, NoGloo)
