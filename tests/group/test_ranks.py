"""What a group makes of Ray's answers, without Ray."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError, RayTaskError
from raylaunch_actors.process_watch import Sighting

from raylaunch.cluster.placement import Placement, Seat
from raylaunch.cluster.tcp_probe import TcpProbe
from raylaunch.errors import LaunchError
from raylaunch.group import member, ranks
from raylaunch.group.member import Member
from raylaunch.group.ranks import RankGroup


class Answers:
    """An actor whose every method answers with the same, once ``ready``: a value, or an error to raise."""

    def __init__(self, answer: Any, ready: bool = True) -> None:
        self.answer, self.ready_, self.killed = answer, ready, False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return SimpleNamespace(remote=lambda *_: self)


class FakeRay:
    """Waits a moment for what never comes."""

    def wait(self, refs: list[Answers], num_returns: int, timeout: float) -> tuple[list[Answers], list[Answers]]:
        done = [ref for ref in refs if ref.ready_]
        if len(done) < num_returns:
            time.sleep(min(timeout, 0.01))
        return done, [ref for ref in refs if not ref.ready_]

    def get(self, ref: Answers, timeout: float | None = None) -> Any:
        if not ref.ready_:
            raise GetTimeoutError
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return ref.answer

    def kill(self, actor: Answers, no_restart: bool) -> None:
        actor.killed = True


@pytest.fixture(autouse=True)
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ranks, member):
        monkeypatch.setattr(module, "ray", FakeRay())
    monkeypatch.setattr(ranks, "SPAWN_EACH_S", 0.1)


def process(rank: int) -> Any:
    return SimpleNamespace(pid=100 + rank, node_id="n", rank=rank, born="")


def group_of(*ranks: Answers, agent: Answers | None = None) -> RankGroup:
    seats = tuple(Seat(rank, rank, "n", "10.0.0.1", rank) for rank in range(len(ranks)))
    group = RankGroup(Placement(None, seats, owned=False))  # type: ignore[arg-type]
    group.members = [Member(SimpleNamespace(rank=rank), actor) for rank, actor in enumerate(ranks)]  # type: ignore[arg-type]
    group.agents = {"n": agent or Answers({})}
    return group


DIED = ActorDiedError()
REFUSED = ActorDiedError(RayTaskError("__init__", "no such folder", ValueError("no such folder")))


def test_a_rank_that_died_while_it_started_is_named_and_the_ends_of_the_others_are_seen() -> None:
    group = group_of(Answers(process(0)), Answers(DIED), Answers(process(2)))
    outcome = group._await_processes(5.0, lambda: False)
    assert list(outcome.deaths) == [1]
    assert "died unexpectedly" in outcome.deaths[1]
    assert outcome.pending == (0, 2)
    assert [member.process and member.process.pid for member in group.members] == [100, None, 102]
    assert group.ended(0).complete
    teardown = group.close(1.0)
    assert (teardown.left, teardown.unseen) == ((), ())


def test_a_rank_that_never_says_which_process_it_is_is_told_as_unproven() -> None:
    group = group_of(Answers(None, ready=False), Answers(DIED))
    assert list(group._await_processes(5.0, lambda: False).deaths) == [1]
    assert group.close(1.0).unseen == (0,)


@pytest.mark.parametrize("error", [REFUSED, RayError("no such node")])
def test_another_error_is_no_death_and_is_not_tried_again(error: Exception) -> None:
    group = group_of(Answers(process(0)), Answers(error))
    with pytest.raises(LaunchError, match=r"an actor could not be started: [\s\S]*no such") as caught:
        group._await_processes(5.0, lambda: False)
    assert not caught.value.retryable
    assert group.members[0].process


def test_an_agent_that_died_while_it_started_may_be_tried_again() -> None:
    with pytest.raises(LaunchError, match="could not be started") as caught:
        group_of(Answers(process(0)), agent=Answers(DIED))._await_processes(5.0, lambda: False)
    assert caught.value.retryable


def test_late_ranks_are_named() -> None:
    group = group_of(Answers(process(0)), Answers(None, ready=False))
    with pytest.raises(LaunchError, match=r"within 0.05 s \(missing ranks: 1\); deadlines.place allows more") as caught:
        group._await_processes(0.05, lambda: False)
    assert (caught.value.code, caught.value.retryable) == ("F08", True)


LATE = Answers(True, ready=False)
NODE_DIED = ActorDiedError(RayTaskError("ready", "The actor died because its node has died.", ValueError()))


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("agent", "host_answers", "lost"),
    [
        (Answers(True), True, False),
        (Answers(True), False, False),
        (LATE, True, False),
        (LATE, False, True),
        (Answers(ActorUnavailableError("no connection", None)), True, False),
        (Answers(ActorUnavailableError("no connection", None)), False, True),
        (Answers(DIED), False, False),
        (Answers(NODE_DIED), True, True),
    ],
)
def test_a_node_is_lost_if_it_takes_no_connection_either(
    agent: Answers, host_answers: bool, lost: bool, open_port: int, closed_port: int
) -> None:
    group = group_of(Answers(None), agent=agent)
    group.raylets = {"n": ("127.0.0.1", open_port if host_answers else closed_port)}
    assert group.find_lost_nodes([0]) == ({0} if lost else set())
    assert group.lost_nodes == ({"n"} if lost else set())


@pytest.mark.parametrize("agent", [LATE, Answers(NODE_DIED)])
def test_the_drivers_own_node_is_never_lost(agent: Answers) -> None:
    assert group_of(Answers(None), agent=agent).find_lost_nodes([0]) == set()


def test_a_host_that_neither_answers_nor_refuses_is_told_after_the_wait() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with socket.create_connection(address):  # all that the server takes in: others get no answer
            began = time.monotonic()
            assert not TcpProbe(*address).answered(0.2)
            assert time.monotonic() - began >= 0.2


DYING, STOPPED = Sighting(True, 9, 5.0), Sighting(False, 19, 5.0, for_s=2.0)


def serving(news: Answers, *, boots: tuple[Answers, Answers] = (LATE, LATE)) -> RankGroup:
    """Two ranks that serve, and what the agent of their node says of processes."""
    group = group_of(LATE, LATE, agent=news)
    for one, boot in zip(group.members, boots, strict=True):
        one.process, one.boot = process(one.rank), boot
    group.news = {news: "n"}
    return group


@pytest.mark.parametrize("seen", [DYING, STOPPED])
def test_what_an_agent_sees_of_a_process_ends_the_wait_before_its_call_does(seen: Sighting) -> None:
    group = serving(Answers({101: seen, 999: DYING}))  # the second is of no rank
    outcome = group.ended(5.0)
    assert (outcome.seen, outcome.deaths, outcome.failures, outcome.complete) == ({1: seen}, {}, {}, False)
    assert outcome.waited_s == (0.0 if seen.ended else 2.0)
    assert group.ended(0).complete, "news is told once"
    assert group.sightings() == {1: seen}


def test_a_death_and_what_was_seen_of_it_come_together() -> None:
    outcome = serving(Answers({100: DYING}), boots=(Answers(DIED), LATE)).ended(5.0)
    assert (list(outcome.seen), list(outcome.deaths)) == ([0], [0])


def test_an_agent_that_is_gone_takes_nothing_with_it() -> None:
    group = serving(Answers(DIED))
    assert group.ended(0).complete
    assert group.news == {}
    assert group.sightings() == {}
    group.members[1].boot = Answers(DIED)
    assert list(group.ended(0).deaths) == [1]


def test_a_lost_node_is_not_asked_what_its_processes_do() -> None:
    group = serving(Answers({100: DYING}))
    group.lost_nodes = {"n"}
    assert group.sightings() == {}


@pytest.mark.parametrize("answer", [Answers({100}, ready=False), Answers(ActorUnavailableError("x", b"0" * 16))])
def test_the_agent_of_a_node_whose_raylet_has_ended_is_asked_once_for_processes(answer: Answers) -> None:
    group = serving(answer)
    assert group._existing("n", {100}, 0.1) is None, "a busy node's late answer is no proof of anything"
    group.ended_raylets = {"n"}
    with pytest.raises(LookupError):
        group._existing("n", {100}, 0.1)
