"""How the answers of ranks and of nodes become one step, with actors whose answers are written in the test."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from raylaunch.group import stepping
from raylaunch.group.stepping import Report, Stepper
from raylaunch.protocol import Arrival, Failure, Gate, Step

STEP = Step(Gate.LOADED)
COME = {rank: Arrival(rank, STEP) for rank in range(6)}
FAILED = {rank: Failure(rank, STEP, "ValueError", "no") for rank in range(6)}
DIED = ActorDiedError()
NEVER = object()


@dataclass(eq=False)
class Answer:
    """What a call brings: a value, an error, or :data:`NEVER`."""

    value: Any


@dataclass
class Actor:
    """A rank or an agent; what is not written is never answered."""

    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        def remote(*_: Any) -> Answer:
            self.calls.append(name)
            return Answer(self.answers.get(name, NEVER))

        return SimpleNamespace(remote=remote)


class FakeRay:
    def wait(self, refs: list[Answer], num_returns: int, timeout: float) -> tuple[list[Answer], list[Answer]]:
        done = [ref for ref in refs if ref.value is not NEVER][:num_returns]
        if len(done) < num_returns:
            time.sleep(min(timeout, 0.002))
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref: Answer) -> Any:
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value


@pytest.fixture(autouse=True)
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "ray", FakeRay())


def packed(reports: Mapping[int, Report]) -> dict[int, bytes]:
    return {rank: bytes([isinstance(one, Arrival)]) + pickle.dumps(one) for rank, one in reports.items()}


def come(*ranks: int) -> dict[int, Report]:
    return {rank: COME[rank] for rank in ranks}


def agent(step: Any, later: Any = NEVER) -> Actor:
    """An agent, with what it answers to ``step`` and then to ``reports``."""
    answers = {"step": step, "reports": later}
    return Actor({name: packed(one) if isinstance(one, dict) else one for name, one in answers.items()})


def stepper(a: Actor, b: Actor, **ranks: Any) -> Stepper:
    """Nodes a and b with ranks 0, 1 and 2, 3 each, whose own answers are ``ranks``, as in ``r3=DIED``."""
    actors = {rank: Actor({"advance": ranks[f"r{rank}"]} if f"r{rank}" in ranks else {}) for rank in range(4)}
    return Stepper(actors, {"a": a, "b": b}, {"a": {0, 1}, "b": {2, 3}})


def waits(times: int) -> Any:
    """Lets a step wait so often, and remembers which ranks were pending."""
    left, seen = iter([0.01] * times), []

    def wait(pending: tuple[int, ...]) -> float:
        seen.append(pending)
        return next(left, 0.0)

    wait.seen = seen  # type: ignore[attr-defined]
    return wait


@pytest.mark.parametrize(
    ("a", "b", "reports"),
    [
        (agent(come(0, 1)), agent(come(2, 3)), come(0, 1, 2, 3)),
        # One node tells a failure; who stands at the gate on both nodes is asked then.
        (agent({1: FAILED[1]}, {0: COME[0], 1: FAILED[1]}), agent(NEVER, come(2)), {**come(0, 2), 1: FAILED[1]}),
        # A rank's process is gone: it is missing from the first answer.
        (agent(come(0), come(0)), agent(NEVER, come(2, 3)), come(0, 2, 3)),
        (agent({}, {}), agent(come(2, 3), come(2, 3)), come(2, 3)),
        # The deadline passes: agents say who has come.
        (agent(come(0, 1)), agent(NEVER, come(3)), come(0, 1, 3)),
        # An agent that does not say so either.
        (agent(come(0, 1)), agent(NEVER), come(0, 1)),
        (agent(come(0, 1)), agent(NEVER, DIED), come(0, 1)),
        # Two failures of two nodes.
        (agent({0: FAILED[0]}, {0: FAILED[0]}), agent(NEVER, {3: FAILED[3]}), {0: FAILED[0], 3: FAILED[3]}),
    ],
)
def test_the_answers_of_nodes_become_one_step(a: Actor, b: Actor, reports: dict[int, Report]) -> None:
    assert stepper(a, b).step(None, waits(5)) == reports


def test_a_node_whose_agent_is_gone_has_its_ranks_called_in_this_step_and_in_all_others() -> None:
    one = stepper(agent(come(0, 1)), agent(DIED), r2=COME[2], r3=COME[3])
    for _ in range(2):
        assert one.step(None, waits(9)) == come(0, 1, 2, 3)
    assert one.nodes == {"a": {0, 1}}
    assert one.agents["b"].calls == ["step"]


def test_a_node_that_is_lost_is_told_by_its_ranks_own_calls() -> None:
    reports = stepper(agent(NEVER, come(0)), agent(DIED), r2=DIED, r3=DIED).step(None, waits(9))
    assert reports == {**come(0), 2: str(DIED), 3: str(DIED)} or reports == {**come(0), 2: str(DIED)}


def test_ranks_are_called_where_no_agent_steps_them() -> None:
    one = stepper(agent(come(0, 1)), agent(NEVER), r2=COME[2], r3=COME[3])
    del one.nodes["b"]
    assert one.step(None, waits(9)) == come(0, 1, 2, 3)
    assert one.agents["b"].calls == []


def test_the_one_who_waits_is_told_who_is_pending() -> None:
    wait = waits(3)
    stepper(agent(come(0, 1)), agent(NEVER)).step(None, wait)
    assert wait.seen[0] == (0, 1, 2, 3)
    assert wait.seen[-1] == (2, 3)


@pytest.mark.parametrize(
    ("ranks", "attaches", "nodes"),
    [
        (16, None, {}),
        (17, None, {"a": set(range(8)), "b": set(range(8, 17))}),
        (17, DIED, {"b": set(range(8, 17))}),  # a rank of node a is gone already
        (17, NEVER, {"b": set(range(8, 17))}),
    ],
)
def test_agents_step_the_ranks_of_large_groups_that_can_reach_them(
    ranks: int, attaches: Any, nodes: dict[str, set[int]]
) -> None:
    actors = {rank: Actor({"attach": attaches if rank == 3 else None}) for rank in range(ranks)}
    one = Stepper(actors, {"a": Actor(), "b": Actor()})
    one.attach({rank: "a" if rank < 8 else "b" for rank in actors})
    assert one.nodes == nodes
