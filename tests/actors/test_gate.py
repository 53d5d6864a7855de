"""Where a rank stops: its own thread and the driver's calls take turns."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from raylaunch_actors.gate import RankGate

from raylaunch.errors import CollectiveAborted, RankFault
from raylaunch.protocol import Arrival, Failure, Gate, IterationFacts, LaunchPlan, Release, RoundPlan, Step
from tests.waiting import wait_until

PLAN = LaunchPlan(1, (RoundPlan("prefill", (8,)),))
PATIENCE_S = 5


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_a_rank_passes_its_gates_in_order(pool):
    gate, steps = RankGate(3, PLAN), list(PLAN.steps())

    def rank():
        return [gate.arrive(s.gate, round=s.round, shape=s.shape, iteration=s.iteration, offer=str(s)) for s in steps]

    running, release, seen = pool.submit(rank), None, []
    for step in steps:
        arrival = gate.advance(release)
        assert isinstance(arrival, Arrival)
        assert (arrival.rank, arrival.step, arrival.offer) == (3, step, str(step))
        assert arrival.started <= arrival.arrived
        seen.append(release := Release(step, (arrival.offer,)))
        assert not running.done()
        assert gate.state().waiting
        assert gate.state().activity != "serving"
    gate.finish(release)
    assert running.result(PATIENCE_S) == seen
    state = gate.state()
    assert (state.step, state.activity, state.waiting) == (steps[-1], "serving", False)


def test_time_at_a_gate_is_not_the_ranks_own(pool):
    gate = RankGate(0, PLAN)
    pool.submit(lambda: [gate.arrive(Gate.MEET), gate.arrive(Gate.ATTACH)])
    first = gate.advance(None)
    time.sleep(0.05)
    second = gate.advance(Release(first.step, ()))
    assert second.started - first.arrived >= 0.05
    gate.finish(Release(second.step, ()))


def test_a_driver_that_came_first_waits(pool):
    gate = RankGate(0, PLAN)
    call = pool.submit(gate.advance, None)
    assert not call.done()
    rank = pool.submit(gate.arrive, Gate.MEET)
    assert call.result(PATIENCE_S).step == Step(Gate.MEET)
    gate.finish(Release(Step(Gate.MEET), ()))
    assert rank.result(PATIENCE_S).step == Step(Gate.MEET)


def test_a_release_that_was_given_already_is_not_given_again(pool):
    """By an agent that has died since, before it could tell what came of it."""
    gate = RankGate(0, PLAN)
    pool.submit(lambda: [gate.arrive(Gate.MEET), gate.arrive(Gate.ATTACH)])
    release = Release(gate.advance(None).step, ())
    assert gate.advance(release).step == Step(Gate.ATTACH)
    assert gate.advance(release).step == Step(Gate.ATTACH)
    assert gate.state().waiting
    gate.finish(Release(Step(Gate.ATTACH), ()))


def test_a_rank_that_stands_at_the_same_gate_again_is_released_again():
    """LATER, by a shape whose first turn requests have kept from being verified."""
    gate, later, passed = RankGate(0, PLAN), Step(Gate.LATER, "prefill", 8), []

    def rank():
        for _ in range(2):
            passed.append(gate.arrive(Gate.LATER, round="prefill", shape=8))

    threading.Thread(target=rank, daemon=True).start()
    for times in (1, 2):
        assert gate.advance(None).step == later
        gate.finish(Release(later, ()))
        wait_until(lambda times=times: len(passed) == times, PATIENCE_S)


def test_a_release_from_another_gate_is_refused_and_the_rank_stays(pool):
    gate = RankGate(2, PLAN)
    rank = pool.submit(gate.arrive, Gate.MEET)
    gate.advance(None)
    with pytest.raises(RankFault, match="rank 2 stands at CONNECT meet, not at LOAD loaded"):
        gate.advance(Release(Step(Gate.LOADED), ()))
    assert not rank.done()
    gate.finish(Release(Step(Gate.MEET), ()))
    assert rank.result(PATIENCE_S)


@pytest.mark.parametrize(
    ("error", "code", "secondary", "message"),
    [
        (RankFault("F04", "reused"), "F04", False, "reused"),
        (CollectiveAborted("F08", "rank 1 left"), "F08", True, "rank 1 left"),
        (KeyError("lm_head"), None, False, "'lm_head'"),
        (ValueError(), None, False, "ValueError()"),
        (AssertionError(" "), None, False, "AssertionError(' ')"),
    ],
)
def test_a_failure_wakes_the_driver_and_says_what_it_was(pool, error, code, secondary, message):
    gate = RankGate(1, PLAN)
    call = pool.submit(gate.advance, None)
    try:
        raise error
    except Exception as caught:
        gate.fail(caught)
    failure = call.result(PATIENCE_S)
    assert isinstance(failure, Failure)
    assert (failure.rank, failure.code, failure.secondary, failure.message) == (1, code, secondary, message)
    assert failure.error == type(error).__name__
    assert "test_gate.py" in failure.traceback
    assert gate.advance(Release(Step(Gate.MEET), ())) is failure, "nothing leads out of a failure"


def test_the_first_failure_counts_and_says_where_the_rank_was(pool):
    gate = RankGate(0, PLAN)
    rank = pool.submit(gate.arrive, Gate.LOADED)
    gate.advance(None)
    call = pool.submit(gate.advance, Release(Step(Gate.LOADED), ()))
    rank.result(PATIENCE_S)
    first = gate.fail(RuntimeError("first"))
    assert gate.fail(RuntimeError("second")) is first
    assert call.result(PATIENCE_S) is first
    assert first.step == Step(Gate.LOADED)


def test_progress_grows_with_reports_and_gates(pool):
    gate = RankGate(0, PLAN)
    gate.read_counters = lambda: {"running": 2}
    assert (gate.state().activity, gate.state().progress, gate.state().step) == ("starting", 0, None)
    gate.progress("loading 3 of 4 tensors")
    assert (gate.state().activity, gate.state().progress) == ("loading 3 of 4 tensors", 1)
    rank = pool.submit(gate.arrive, Gate.LOADED)
    gate.advance(None)
    assert gate.state().progress == 2
    gate.finish(Release(Step(Gate.LOADED), ()))
    rank.result(PATIENCE_S)
    assert gate.state().progress == 3
    assert gate.state().counters == {"running": 2}


@pytest.mark.parametrize(("granularity", "stops"), [("iteration", {1, 2, 3}), ("shape", {1, 3}), ("phase", {3})])
def test_granularity_decides_where_a_rank_stops_but_never_lets_a_third_iteration_pass(granularity, stops):
    gate = RankGate(0, LaunchPlan(1, PLAN.rounds, granularity))
    for iteration in (1, 2, 3):
        rank = threading.Thread(
            target=gate.arrive,
            args=(Gate.ITERATION, IterationFacts()),
            kwargs={"round": "prefill", "shape": 8, "iteration": iteration},
            daemon=True,
        )
        rank.start()
        if iteration in stops:
            wait_until(lambda: gate.state().waiting, PATIENCE_S)
            gate.finish(Release(Step(Gate.ITERATION, "prefill", 8, iteration), ()))
        rank.join(PATIENCE_S)
        assert not rank.is_alive()
    assert gate.state().progress >= 3
    assert gate.state().gates == 3
