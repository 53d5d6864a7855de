"""The agent of a node and the gates of its ranks, here threads of one process, over their real connections."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import pytest
from raylaunch_actors.gate import RankGate
from raylaunch_actors.node_gates import NodeGates, attach, failed

from raylaunch.protocol import Arrival, Failure, Gate, LaunchPlan, Release, Step

PLAN = LaunchPlan(3)
MEET, ATTACH = Step(Gate.MEET), Step(Gate.ATTACH)


@pytest.fixture
def agent() -> NodeGates:
    return NodeGates()


@pytest.fixture
def gates(agent: NodeGates) -> list[RankGate]:
    address = agent.listen()
    gates = [RankGate(rank, PLAN) for rank in (4, 5, 6)]
    for gate in gates:
        attach(gate, *address)
    return gates


@pytest.fixture
def run() -> Iterator[Callable[..., threading.Thread]]:
    """Starts a function on a thread that is waited for at the end."""
    threads: list[threading.Thread] = []

    def start(function: Callable[..., object], *arguments: object) -> threading.Thread:
        threads.append(threading.Thread(target=function, args=arguments, daemon=True))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def told(answer: dict[int, bytes]) -> dict[int, object]:
    return {rank: pickle.loads(report[1:]) for rank, report in answer.items()}


def steps_of(answer: dict[int, bytes]) -> dict[int, Step]:
    reports = told(answer)
    assert all(isinstance(one, Arrival) for one in reports.values())
    return {rank: one.step for rank, one in sorted(reports.items()) if isinstance(one, Arrival)}


def released(step: Step | None) -> bytes:
    return pickle.dumps(Release(step, ("key",)) if step else None)


def test_an_agent_takes_its_ranks_from_gate_to_gate(
    agent: NodeGates, gates: list[RankGate], run: Callable[..., threading.Thread]
) -> None:
    offers: list[tuple[object, ...]] = []
    for gate in gates:
        run(lambda one=gate: (offers.append(one.arrive(Gate.MEET).offers), one.arrive(Gate.ATTACH)))
    assert steps_of(agent.step(released(None))) == dict.fromkeys((4, 5, 6), MEET)
    assert steps_of(agent.step(released(MEET))) == dict.fromkeys((4, 5, 6), ATTACH)
    assert offers == [("key",)] * 3
    assert steps_of(agent.reports(0)) == dict.fromkeys((4, 5, 6), ATTACH)
    for gate in gates:
        gate.finish(Release(ATTACH, ()))


def test_the_first_failure_is_told_at_once_and_who_comes_in_the_grace_after_it(
    agent: NodeGates, gates: list[RankGate], run: Callable[..., threading.Thread]
) -> None:
    gates[1].fail(ValueError("no"))
    answer = agent.step(released(None))
    assert list(answer) == [5]
    assert failed(answer[5])
    assert isinstance(told(answer)[5], Failure)
    run(gates[0].arrive, Gate.MEET)
    assert set(agent.reports(0.3)) == {4, 5}
    gates[0].finish(Release(MEET, ()))


def test_a_rank_whose_process_is_gone_is_told_by_what_is_missing(agent: NodeGates) -> None:
    address, key = agent.listen()
    gone = Client(address, "AF_UNIX", authkey=key)
    gone.send_bytes((7).to_bytes(4, "big"))
    gone.recv_bytes()
    gone.close()
    assert agent.step(released(None)) == {}
    assert agent.reports(0) == {}


def test_a_rank_that_stands_elsewhere_says_so(
    agent: NodeGates, gates: list[RankGate], run: Callable[..., threading.Thread]
) -> None:
    for gate in gates:
        run(gate.arrive, Gate.MEET)
    agent.step(released(None))
    answer = agent.step(released(ATTACH))
    assert "stands at CONNECT meet, not at CONNECT attach" in str(next(iter(told(answer).values())))
    for gate in gates:
        gate._report = Arrival(gate.rank, MEET)  # that the threads of this test end
        gate.finish(Release(MEET, ()))


def test_nobody_is_heard_without_the_key(agent: NodeGates, gates: list[RankGate]) -> None:
    """And what a stranger does keeps no rank from its agent."""
    address, key = agent.listen()
    with pytest.raises(AuthenticationError):
        Client(address, "AF_UNIX", authkey=b"guessed")
    assert agent._ranks == {4, 5, 6}
    attach(RankGate(7, PLAN), address, key)
    assert agent._ranks == {4, 5, 6, 7}
