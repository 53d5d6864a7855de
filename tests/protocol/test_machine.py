"""A good launch is released gate by gate; whatever breaks a rule is refused, and nothing is released afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from raylaunch.protocol import Gate, LaunchPlan, Protocol, Release, RoundPlan, Violation
from tests.protocol.builders import MUTATIONS, PLAN, arrivals, at, plans

PLAIN = LaunchPlan(2)


@settings(max_examples=50)
@given(plans(), st.randoms())
def test_a_good_launch_is_released_gate_by_gate(plan, random):
    protocol = Protocol(plan)
    for step in plan.steps():
        assert not protocol.done
        assert protocol.expected() == step
        ranks = arrivals(plan, step)
        random.shuffle(ranks)
        offers = tuple(f"offer {rank}" for rank in range(plan.world_size))
        assert protocol.submit(ranks) == Release(step, offers)
    assert protocol.done
    assert [one.rank for one in protocol.history[step]] == list(range(plan.world_size))


@settings(max_examples=50)
@given(plans())
def test_rounds_that_only_the_ranks_know_are_taken_from_them(plan):
    told = replace(plan, rounds=(), rounds_from_ranks=True)
    protocol = Protocol(told)
    for step in plan.steps():
        assert protocol.expected() == step
        ranks = arrivals(plan, step)
        if step.gate is Gate.WARMED:
            ranks = [replace(one, facts=replace(one.facts, rounds=plan.rounds)) for one in ranks]
        assert isinstance(protocol.submit(ranks), Release)
    assert protocol.done
    assert protocol.plan == plan


@settings(max_examples=50)
@given(plans())
def test_the_steps_of_a_launch(plan):
    steps = list(plan.steps())
    assert len(set(steps)) == len(steps)
    orders = [step.phase.value for step in steps if step.round in (None, plan.rounds[0].name)]
    assert orders == sorted(orders)
    for one in plan.rounds:
        iterations = [s for s in steps if s.gate is Gate.ITERATION and s.round == one.name]
        each = {"iteration": range(1, one.iterations + 1), "shape": (1,), "phase": ()}[plan.granularity]
        wanted = [(shape, i) for shape in sorted(one.shapes, reverse=True) for i in each]
        assert [(s.shape, s.iteration) for s in iterations] == wanted
        assert plan.stops_at(one.name, one.iterations + 1), "one that should not be must never pass unseen"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_one_wrong_thing_is_refused_and_nothing_is_released_afterwards(mutation, data):
    plan = data.draw(plans(least_ranks=2 if mutation.compared else 1))
    steps = [step for step in plan.steps() if not mutation.gates or step.gate in mutation.gates]
    assume(steps)
    step = data.draw(st.sampled_from(steps))
    rank = data.draw(st.integers(0, plan.world_size - 1))
    protocol = at(Protocol(plan), step)
    ranks = mutation.change(arrivals(plan, step), rank, plan)
    data.draw(st.randoms()).shuffle(ranks)
    released = len(protocol.history)

    found = protocol.submit(ranks)

    assert isinstance(found, Violation)
    assert found.code == mutation.code
    if not mutation.names:
        assert found.rank is None
    elif mutation.compared and plan.world_size == 2:
        assert found.rank == 1, "of two that differ neither is usual: the higher one is named"
    else:
        assert found.rank == rank
    for later in plan.steps():
        assert protocol.submit(arrivals(plan, later)) is found
    assert not protocol.done
    assert len(protocol.history) == released


def test_nothing_follows_the_last_gate():
    protocol = Protocol(PLAIN)
    for step in PLAIN.steps():
        protocol.submit(arrivals(PLAIN, step))
    found = protocol.submit(arrivals(PLAIN, step))
    assert isinstance(found, Violation)
    assert found.summary == "ranks arrived at a gate after the last one"
    assert protocol.done
    with pytest.raises(IndexError):
        protocol.expected()


def test_a_launch_without_capture_has_seven_gates():
    assert [step.gate for step in PLAIN.steps()] == [
        *(Gate.MEET, Gate.ATTACH, Gate.CONNECTED, Gate.LOADED, Gate.WARMED, Gate.VERIFIED, Gate.READY)
    ]


def test_steps_read_well():
    texts = [str(step) for step in LaunchPlan(1, (RoundPlan("decode", (4,)),)).steps()]
    assert texts[:2] == ["CONNECT meet", "CONNECT attach"]
    assert "CAPTURE iteration decode 4 requests iteration 2" in texts
    assert str(next(s for s in PLAN.steps() if s.shape)) == "CAPTURE iteration prefill 32 tokens iteration 1"


class AnyArrivals(RuleBasedStateMachine):
    """Submits good, early, late, incomplete and wrong arrivals in any order; knows what must be released."""

    @initialize(plan=plans())
    def begin(self, plan):
        self.plan, self.steps = plan, list(plan.steps())
        self.protocol, self.released, self.broken = Protocol(plan), 0, False

    def submit(self, ranks, good):
        outcome = self.protocol.submit(ranks)
        good = good and not self.broken
        assert isinstance(outcome, Release if good else Violation)
        self.released += good
        self.broken |= not good
        assert len(self.protocol.history) == self.released

    def due(self):
        return self.steps[min(self.released, len(self.steps) - 1)]

    def left(self):
        return self.released < len(self.steps)

    @rule(times=st.integers(1, 8))
    def advance(self, times):
        for _ in range(times):
            self.submit(arrivals(self.plan, self.due()), self.left())

    @rule(index=st.integers(0, 40))
    def stand_anywhere(self, index):
        step = self.steps[index % len(self.steps)]
        self.submit(arrivals(self.plan, step), self.left() and step == self.due())

    @rule(chosen=st.lists(st.integers(-1, 5), max_size=6))
    def some_ranks(self, chosen):
        here = {one.rank: one for one in arrivals(self.plan, self.due())}
        ranks = [here[rank] for rank in chosen if rank in here]
        self.submit(ranks, self.left() and sorted(one.rank for one in ranks) == list(here))

    @precondition(lambda self: self.left())
    @rule(mutation=st.sampled_from(MUTATIONS), rank=st.integers(0, 4))
    def say_something_wrong(self, mutation, rank):
        gate = self.due().gate
        applies = (not mutation.gates or gate in mutation.gates) and self.plan.world_size > mutation.compared
        ranks = arrivals(self.plan, self.due())
        if applies:
            ranks = mutation.change(ranks, rank % self.plan.world_size, self.plan)
        self.submit(ranks, not applies)


TestAnyArrivals = AnyArrivals.TestCase
TestAnyArrivals.settings = settings(
    max_examples=40,
    stateful_step_count=12,
)
