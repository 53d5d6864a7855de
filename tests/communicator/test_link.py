"""From offers to a communicator, with real processes: what all agree on, and what is left out by all."""

from __future__ import annotations

import types

import pytest
import torch
from raylaunch_actors.communicator.choice import Option
from raylaunch_actors.communicator.cpu import CpuCommunicators
from raylaunch_actors.communicator.process_group import NotOpened, connect_store, open_store, opened_alike
from raylaunch_actors.communicator.settings import Settings
from raylaunch_actors.communicator.single import SingleRank
from raylaunch_actors.reference.link import Link, MemoryOffer
from raylaunch_actors.reference.link_setup import link_of

from raylaunch import LaunchConfig
from raylaunch.errors import RankFault
from tests.communicator.ranks import Channel, check, run

SIZES = (1024, 4096)
KINDS = {"auto": ("shared-memory", "gloo"), "custom": ("shared-memory",), "library": ("gloo",)}


def settings(rank: int, wanted: str) -> Settings:
    return Settings(rank, 2, wanted, SIZES, 1 << 16, 64, 1 << 20, 20, 10, "127.0.0.1")


class Nothing(CpuCommunicators):
    """Ranks that can open nothing."""

    def open(self, kind, offers, store):
        raise NotOpened("F16", f"{kind} is broken")


class NoGloo(CpuCommunicators):
    """Ranks of which rank 1 cannot open gloo."""

    def open(self, kind, offers, store):
        if kind == "gloo":
            problem = "it is not there" if self.settings.rank == 1 else ""
            opened_alike(connect_store(store, 20), self.settings.rank, self.settings.world_size, problem, 10)
        return super().open(kind, offers, store)


def linked(channel: Channel, wanted: str, graphs: bool, kinds: type[CpuCommunicators]):
    server = open_store("127.0.0.1") if channel.rank == 0 else None
    address = channel.exchange(server.address if server else None)[0]
    link = Link(settings(channel.rank, wanted), kinds(settings(channel.rank, wanted)))
    said: list[str] = []
    try:
        link.connect(channel.exchange(link.offer()), address, said.append)
        assert said == [f"connecting by {kind}" for kind in KINDS[wanted]]
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


def test_f18_where_nothing_can_be_opened_every_reason_is_told():
    links = [Link(settings(rank, "auto"), Nothing(settings(rank, "auto"))) for rank in (0, 1)]
    try:
        offers = [link.offer() for link in links]
        with pytest.raises(RankFault, match=r"shared-memory is broken.*gloo is broken") as caught:
            links[0].connect(offers, "", lambda activity: None)
        assert caught.value.code == "F18"
    finally:
        for link in links:
            link.close()


class NoInputs:
    """A registration that never has anything to do."""

    capacity = None

    def pending(self):
        return ()

    def register(self, peers):
        return 0

    def registered(self):
        return 0


class Kind(SingleRank):
    """A communicator that is only opened and closed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.closed = kind, False
        self.registration = NoInputs() if kind == "registering" else None

    def close(self) -> None:
        self.closed = True


class Kinds:
    """Four of them, all possible."""

    def options(self, offers, nodes):
        return tuple(Option(kind) for kind in ("registering", "fast", "slow", "large"))

    def open(self, kind, offers, store):
        return Kind(kind)


def test_what_no_size_goes_to_is_closed_unless_peers_have_its_memory_open():
    link = Link(settings(0, "auto"), Kinds())
    link.connect([MemoryOffer("n", None)] * 2, "", lambda activity: None)
    opened = dict(link.opened)
    times = {"registering": {8: 9.0, 64: 9.0}, "fast": {8: 1.0, 64: 2.0}, "slow": {8: 3.0, 64: 3.0}}
    link.decide([{**times, "large": {8: 2.0, 64: 1.0}}] * 2)
    assert [route.kind for route in link.choice.routes] == ["fast", "large"]
    assert [kind for kind, one in opened.items() if one.closed] == ["slow"]


def test_gpus_that_do_not_connect_leave_the_phase_time_for_another_kind():
    for settings, seconds in (([], 30), (["deadlines.collective=7"], 7), (["deadlines.connect=8"], 4)):
        spec = types.SimpleNamespace(
            config=LaunchConfig.default(settings), rank=0, world_size=2, bind_host="127.0.0.1", device="cpu"
        )
        assert link_of(spec, SIZES, 0).settings.open_s == seconds


@pytest.mark.slow
def test_f16_what_was_asked_for_and_cannot_be_opened_is_an_error_on_every_rank():
    for error in run(2, linked_to_nothing):
        assert isinstance(error, NotOpened)
        assert "on rank 1: it is not there" in str(error)


def linked_to_nothing(channel: Channel):
    return linked(channel, "library", True, NoGloo)
