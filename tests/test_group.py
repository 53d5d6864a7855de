"""What a group makes of Ray's answers, without Ray."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from raylaunch import group as group_module
from raylaunch.errors import LaunchError
from raylaunch.group import Member, RankGroup
from raylaunch.placement import Placement, Seat


class Answers:
    """An actor whose every method answers with the same, once ``ready``: a value, or an error to raise."""

    def __init__(self, answer: Any, ready: bool = True) -> None:
        self.answer, self.ready_, self.killed = answer, ready, False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return SimpleNamespace(remote=lambda *_: self)


class FakeRay:
    def wait(self, refs: list[Answers], num_returns: int, timeout: float) -> tuple[list[Answers], list[Answers]]:
        done = [ref for ref in refs if ref.ready_]
        if len(done) < num_returns:
            time.sleep(min(timeout, 0.01))
        return done, [ref for ref in refs if not ref.ready_]

    def get(self, ref: Answers, timeout: float | None = None) -> Any:
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return ref.answer

    def kill(self, actor: Answers, no_restart: bool) -> None:
        actor.killed = True


@pytest.fixture(autouse=True)
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "ray", FakeRay())
    monkeypatch.setattr(group_module, "SPAWN_EACH_S", 0.1)


def process(rank: int) -> Any:
    return SimpleNamespace(pid=100 + rank, node_id="n", rank=rank)


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
