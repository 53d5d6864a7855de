"""What becomes of spares by what they answer, without Ray."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from raylaunch.cluster.placement import Placement, Seat
from raylaunch.cluster.session import RaySession
from raylaunch.group import member, ranks, remote, standby
from raylaunch.group.member import Member
from raylaunch.group.ranks import RankGroup
from raylaunch.group.standby import Standby
from raylaunch.report import Standing
from tests.group.test_spares import spec

NBYTES = 1 << 20
REFUSED = RayTaskError("prepare", "", ValueError("its imports have opened a CUDA context\nhere"))


class Actor:
    """What it answers by method; an error is raised, and what is not there never comes."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.killed = answers, False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return SimpleNamespace(remote=lambda *_: Call(self, name))


class Call:
    def __init__(self, actor: Actor, name: str) -> None:
        self.actor, self.name = actor, name


class FakeRay:
    def wait(self, refs: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        return [ref for ref in refs if ref.name in ref.actor.answers], []

    def get(self, ref: Call, timeout: float | None = None) -> Any:
        answer = ref.actor.answers[ref.name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor: Actor, no_restart: bool) -> None:
        actor.killed = True


def healthy() -> Actor:
    process = SimpleNamespace(pid=1, node_id="a", gpus=(), born="")
    return Actor(whoami=process, prepare=NBYTES, adopt=None)


class Made:
    """Spares beside two ranks on node ``a``, each with the answers that the test gives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.coming, self.actors, self.agents = list[Actor](), list[Actor](), list[Actor]()
        self.standby = Standby(1, RaySession(), set())
        for module in (member, ranks, standby):
            monkeypatch.setattr(module, "ray", FakeRay())
        monkeypatch.setattr(standby, "NodeAffinitySchedulingStrategy", lambda node, soft: node)
        monkeypatch.setattr(standby, "LOOK_EVERY_S", -1.0)
        monkeypatch.setattr(standby, "pause_after", lambda deaths: -1.0)
        monkeypatch.setattr(remote, "rank_actor", self._spare)
        monkeypatch.setattr(remote, "agent_on", self._agent)

    def _spare(self, *_: object, stands_by: bool) -> Actor:
        self.actors.append(self.coming.pop(0) if self.coming else healthy())
        return self.actors[-1]

    def _agent(self, node: str) -> Actor:
        self.agents.append(Actor(ready=True, process_states={}))
        return self.agents[-1]

    def tend(self, times: int = 2) -> Standing:
        return [self.standby.tend(group_on("aa")) for _ in range(times)][-1]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(monkeypatch)


def group_on(nodes: str, **other: Any) -> RankGroup:
    seats = tuple(Seat(rank, rank, node, "10.0.0.1", rank) for rank, node in enumerate(nodes))
    group = RankGroup(Placement(None, seats, owned=False))  # type: ignore[arg-type]
    group.members = [
        Member(specs_on(nodes)[rank], None, SimpleNamespace(rank=rank, pid=rank, node_id=node, gpus=(), born=""))  # type: ignore[arg-type]
        for rank, node in enumerate(nodes)
    ]
    return group


def specs_on(nodes: str, **other: Any) -> list[Any]:
    return [spec(rank, group="g", **other) for rank in range(len(nodes))]


def test_they_are_made_once_and_ready_when_all_is_imported(made: Made) -> None:
    assert made.tend(1) == Standing(0, 0)
    assert made.tend(3) == Standing(2, 2 * NBYTES)
    assert (len(made.actors), len(made.agents)) == (2, 1)


def test_one_that_dies_is_replaced(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made.tend()
    made.actors[1].answers["stand_by"] = ActorDiedError()
    made.tend()
    assert [spare.actor for spare in made.standby.spares] == [made.actors[0], made.actors[2]]
    assert made.tend() == Standing(2, 2 * NBYTES)
    assert "a standby rank has ended and is replaced" in caplog.text


def test_what_cannot_be_imported_is_not_tried_again(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    made.coming = [healthy(), Actor(prepare=REFUSED)]
    assert made.tend(4) == Standing()
    assert [one.killed for one in made.actors] == [True, True]
    assert [record.message for record in caplog.records] == [
        "no ranks stand by any more: its imports have opened a CUDA context"
    ]


def test_those_on_a_lost_node_are_forgotten(made: Made) -> None:
    made.tend()
    made.standby.lost_nodes.add("a")
    made.standby.per_rank = 1
    made.standby._make_at = 1e12
    assert made.tend() == Standing()
    assert (made.standby.spares, made.standby.agents) == ([], {})


def test_a_group_adopts_those_that_answer(made: Made) -> None:
    made.tend()
    del made.actors[0].answers["adopt"]
    adopted = made.standby.adopt(group_on("aa"), specs_on("aa"))
    assert (adopted.actors, adopted.agents) == ({1: made.actors[1]}, {"a": made.agents[0]})
    assert [one.killed for one in made.actors] == [True, False]
    assert made.standby.spares == []
    assert made.tend() == Standing(2, 2 * NBYTES)
    assert len(made.actors) == 4, "new ones are made beside the next group"


def test_a_group_that_is_elsewhere_or_another_adopts_none_and_they_are_ended(made: Made) -> None:
    for nodes, other in (("bb", {}), ("aa", {"environment": {"A": "2"}})):
        made.tend()
        adopted = made.standby.adopt(group_on(nodes), specs_on(nodes, **other))
        assert adopted.actors == {}
        assert all(one.killed for one in made.actors)
        assert made.standby.spares == []


def test_those_that_are_not_needed_stay(made: Made) -> None:
    made.standby.per_rank = 2
    made.tend()
    adopted = made.standby.adopt(group_on("aa"), specs_on("aa"))
    assert list(adopted.actors.values()) == made.actors[:2]
    assert [spare.actor for spare in made.standby.spares] == made.actors[2:]
    made.tend()
    assert (len(made.actors), list(made.standby.agents)) == (6, ["a"])


def test_all_are_ended_in_the_end(made: Made) -> None:
    made.tend()
    made.standby.close(1.0)
    assert all(one.killed for one in (*made.actors, *made.agents))
    made.standby.close(1.0)
