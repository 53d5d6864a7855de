"""Each rule by itself: what breaks it, and what it says then. That a good launch breaks none: test_machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raylaunch.protocol import (
    Gate,
    LaunchPlan,
    Release,
    RoundPlan,
    ShapeInputs,
    ShapeVerdict,
    Step,
    Violation,
)
from raylaunch.protocol.rounds import first_verified
from raylaunch.protocol.rules import RULES, check
from raylaunch.protocol.rules.arrivals import FACTS
from raylaunch.protocol.rules.capture import first_difference
from raylaunch.protocol.rules.common import human_bytes, named_shape, odd_one
from raylaunch.protocol.rules.connect import table_is_large_enough
from tests.protocol.builders import DECODE, INPUTS, MEASURING, MUTATIONS, PLAN, SIZES, VERDICT, arrivals, say, submit

THREE = replace(PLAN, world_size=3)
OF_A_LAUNCH = tuple(gate for gate in Gate if gate is not Gate.LATER)


def every(**changes):
    def change(ranks):
        for one in range(len(ranks)):
            ranks = say(one, **changes)(ranks)
        return ranks

    return change


@pytest.mark.parametrize("gate", OF_A_LAUNCH)
def test_good_arrivals_break_no_rule(gate):
    assert isinstance(submit(gate, lambda ranks: ranks, MEASURING), Release)


ALONE = {rule for rules in RULES.values() for rule in rules} - {table_is_large_enough}  # that one: test_f17


@pytest.mark.parametrize("rule", sorted(ALONE, key=lambda rule: rule.__name__), ids=lambda rule: rule.__name__)
def test_every_rule_passes_and_is_broken_by_something(rule):
    step = {step.gate: step for step in PLAN.steps()}
    history = {step[gate]: arrivals(PLAN, step[gate]) for gate in (Gate.CONNECTED, Gate.WARMED, Gate.VERIFIED)}
    for gate in (gate for gate in OF_A_LAUNCH if rule in RULES[gate]):
        assert rule(PLAN, step[gate], arrivals(PLAN, step[gate]), history) is None
        assert any(
            rule(PLAN, step[gate], mutation.change(arrivals(PLAN, step[gate]), 1, PLAN), history)
            for mutation in MUTATIONS
            if gate in mutation.gates and gate in FACTS and mutation.name != "facts of another gate"
        )


def test_a_missing_rank_is_counted():
    found = submit(Gate.MEET, lambda ranks: ranks[:1])
    assert found == Violation(None, "expected one arrival of each of 2 ranks, got [0]", Step(Gate.MEET))


def test_a_rank_at_another_gate_is_named_with_both_gates():
    found = submit(Gate.LOADED, lambda r: [r[0], replace(r[1], step=Step(Gate.WARMED))])
    assert found.rank == 1
    assert found.summary == "rank 1 is at WARMUP warmed while LOAD loaded was due"
    assert found.states == {0: "at LOAD loaded", 1: "at WARMUP warmed"}


@pytest.mark.parametrize("planned", [2, 3])
def test_f01_exactly_the_iterations_that_are_planned(planned):
    """Two of the reference engine and of SGLang's pieces, three of SGLang's whole passes."""
    plan = LaunchPlan(2, (RoundPlan("prefill", (8, 32), iterations=planned),))
    assert isinstance(submit(Gate.ITERATION, lambda ranks: ranks, plan, nth=planned - 1), Release)
    more = Step(Gate.ITERATION, "prefill", 32, planned + 1)
    found = submit(Gate.ITERATION, lambda r: [replace(one, step=more) for one in r], plan, nth=planned)
    assert (found.code, found.rank, found.step) == ("F01", 0, more)
    assert f"a shape gets exactly {planned} iterations" in found.summary


@pytest.mark.parametrize("gate", [Gate.ITERATION, Gate.CAPTURED, Gate.REGISTERED, Gate.WARMED])
def test_f01_replay_before_registration(gate):
    found = submit(gate, say(1, replays=2))
    assert (found.code, found.rank) == ("F01", 1)
    assert "replayed 2 graphs" in found.summary


def test_f01_pending_inputs():
    found = submit(Gate.REGISTERED, say(1, pending=5))
    assert (found.code, found.rank) == ("F01", 1)
    assert "5 all-reduce inputs without peers' addresses" in found.summary


@pytest.mark.parametrize(("inside", "recorded"), [(4, 3), (3, 0), (0, 3)])
def test_f02_all_reduces_not_recorded(inside, recorded):
    shapes = {32: replace(INPUTS, count=recorded)} if recorded else {}
    found = submit(Gate.CAPTURED, every(in_graphs={32: inside}, recorded=shapes))
    assert (found.code, found.rank, found.step.shape) == ("F02", 0, 32)
    assert f"{inside} all-reduces but recorded {recorded}" in found.summary


def test_f03_first_difference_is_named():
    one_fewer = {32: ShapeInputs(2, 12288, "other"), 8: INPUTS}
    found = submit(Gate.CAPTURED, say(1, recorded=one_fewer, sizes={32: (4096, 8192), 8: (4096, 4096, 8192)}))
    assert (found.code, found.rank, found.step) == ("F03", 1, Step(Gate.CAPTURED, "prefill", 32))
    assert found.states[0] == "3 inputs, 16.0 KiB"
    assert found.states[1] == "2 inputs, 12.0 KiB, first difference: input 1 (8.0 KiB here, 4.0 KiB there)"


def test_f03_largest_shape_that_differs_is_named_first():
    found = submit(Gate.CAPTURED, say(1, recorded={}), nth=1)
    assert found.step == Step(Gate.CAPTURED, "decode", max(DECODE.shapes))
    assert found.states[1].startswith("0 inputs, 0 B")


def test_f03_at_the_gate_of_the_next_shape_no_iteration_is_named():
    found = submit(Gate.ITERATION, say(1, recorded={32: replace(INPUTS, count=4)}), nth=2)
    assert (found.code, found.step) == ("F03", Step(Gate.ITERATION, "prefill", 32))


def test_f03_absent_input():
    (step,) = (s for s in PLAN.steps() if s.gate is Gate.CAPTURED and s.round == "prefill")
    ranks = say(1, sizes={32: (4096, 4096), 8: SIZES})(arrivals(PLAN, step))
    assert first_difference(ranks, 32, 1) == ", first difference: input 2 (absent here, 8.0 KiB there)"
    assert first_difference(ranks, 8, 0) == ""


def test_f03_inputs_that_differ_by_little_are_told_apart():
    (step,) = (s for s in PLAN.steps() if s.gate is Gate.CAPTURED and s.round == "prefill")
    ranks = say(1, sizes={32: (4096, 9_437_184)})(say(0, sizes={32: (4096, 9_437_200)})(arrivals(PLAN, step)))
    assert first_difference(ranks, 32, 1) == ", first difference: input 1 (9437184 B here, 9437200 B there)"


@pytest.mark.parametrize("change", [{"pieces": 9}, {"eager_pieces": {0: "x"}}, {"planned_inputs": 0}])
def test_f03_model_split_differently(change):
    found = submit(Gate.WARMED, say(2, **change), THREE)
    assert (found.code, found.rank, set(found.states)) == ("F03", 2, {0, 1, 2})


def test_f03_why_a_piece_is_eager_may_differ_in_words():
    assert isinstance(submit(Gate.WARMED, say(1, eager_pieces={1: "attention, on rank 1"})), Release)


def test_f03_registered_counts():
    found = submit(Gate.REGISTERED, say(0, registered=13), THREE)
    assert (found.code, found.rank, found.states[0]) == ("F03", 0, "13 inputs registered")


@pytest.mark.parametrize(
    ("devices", "gpus", "right"),
    [
        (("cuda:0", "cuda:1"), ("uuid a", "uuid b"), True),
        (("cuda:0", "cuda:0"), ("uuid a", "uuid a"), True),  # they share it, as configured
        (("cuda:0", "cuda:0"), ("uuid a", "uuid b"), True),  # on two nodes
        (("cuda:0", "cuda:1"), ("uuid a", "uuid a"), False),
        (("cpu", "cpu"), ("", ""), True),
    ],
)
def test_f09_ranks_that_were_given_different_gpus_are_on_different_ones(devices, gpus, right):
    def meet(ranks):
        for rank in (0, 1):
            ranks = say(rank, device=devices[rank], gpu=gpus[rank])(ranks)
        return ranks

    found = submit(Gate.MEET, meet)
    assert isinstance(found, Release) is right
    if not right:
        assert (found.code, found.rank) == ("F09", None)
        assert "ranks 0 and 1 were given cuda:0 and cuda:1 and are on one GPU" in found.summary


def test_f12_replay_differs_from_eager():
    wrong = {
        "prefill 32": ShapeVerdict(0.0, 0.0, "d", 3),
        "prefill 8": ShapeVerdict(0.5, 0.01, "d", 3),
    }
    plan = LaunchPlan(2, (RoundPlan("prefill", (32, 8)),))
    found = submit(Gate.VERIFIED, say(1, shapes=wrong), plan)
    assert (found.code, found.rank, found.step) == ("F12", 1, Step(Gate.VERIFIED, "prefill", 8))
    assert found.summary == "replay differs from eager at prefill 8 by 0.5, allowed is 0.01"


def test_f12_wrong_on_every_rank_names_none():
    wrong = {f"{p.name} {s}": ShapeVerdict(0.5, 0.01, "d", 3) for p in PLAN.rounds for s in p.shapes}
    found = submit(Gate.VERIFIED, every(shapes=wrong))
    assert (found.code, found.rank, found.states[1]) == ("F12", None, "differs by 0.5")


@pytest.mark.parametrize(("error", "right"), [(1e-3, True), (0.0, True), (2e-3, False), (float("nan"), False)])
def test_f12_tolerance(error, right):
    shapes = {
        f"{p.name} {s}": ShapeVerdict(error, 1e-3, "d", 2, {1: "attention"}) for p in PLAN.rounds for s in p.shapes
    }
    assert isinstance(submit(Gate.VERIFIED, every(shapes=shapes)), Release) is right


def test_f12_only_ranks_that_saw_the_request_are_compared():
    assert isinstance(submit(Gate.VERIFIED, say(1, request_tokens=())), Release)
    found = submit(Gate.VERIFIED, say(1, request_tokens=(9,)))
    assert (found.code, found.rank, found.states[1]) == ("F12", 1, "tokens (9,)")


@pytest.mark.parametrize(("planned", "capacity", "right"), [(8, 8, True), (9, 8, False), (9, None, True)])
def test_f17_table_of_registered_inputs(planned, capacity, right):
    steps = {step.gate: step for step in PLAN.steps()}
    history = {steps[Gate.CONNECTED]: every(capacity=capacity)(arrivals(PLAN, steps[Gate.CONNECTED]))}
    ranks = every(planned_inputs=planned)(arrivals(PLAN, steps[Gate.WARMED]))
    found = table_is_large_enough(PLAN, steps[Gate.WARMED], ranks, history)
    assert (found is None) is right
    if found:
        assert (found.code, found.rank) == ("F17", 0)
        assert "9 all-reduce inputs would be registered but sgl_kernel has 8 rows" in found.summary


def test_f17_is_asked_before_anything_is_captured():
    (step,) = (step for step in PLAN.steps() if step.gate is Gate.WARMED)
    connected = Step(Gate.CONNECTED)
    history = {connected: every(capacity=8)(arrivals(PLAN, connected))}
    found = check(PLAN, step, every(planned_inputs=9)(arrivals(PLAN, step)), history)
    assert isinstance(found, Violation)
    assert (found.code, found.step) == ("F17", step)


def test_f18_fallback_decided_differently():
    found = submit(Gate.CONNECTED, say(1, kind="nccl", reason="no peer access to gpu 0"))
    assert (found.code, found.rank) == ("F18", 1)
    assert "nccl" in found.states[1]
    assert "no peer access to gpu 0" in found.states[1]


def test_f18_reasons_may_differ_in_words():
    assert isinstance(submit(Gate.CONNECTED, say(1, reason="as rank 0 says")), Release)


def test_f19_fingerprints():
    found = submit(Gate.MEET, say(0, fingerprint={"torch": "2.12", "dtype": "bfloat16"}), THREE)
    assert (found.code, found.rank) == ("F19", 0)
    assert found.summary == "ranks differ in torch: '2.12' on rank 0, '2.11' elsewhere"
    assert found.states == {0: "torch = 2.12", 1: "torch = 2.11", 2: "torch = 2.11"}


def test_f20_piece_without_graph():
    found = submit(Gate.CAPTURED, say(1, missing={32: (), 8: (0, 2)}))
    assert (found.code, found.rank, found.step.shape) == ("F20", 1, 8)
    assert "no graph for 2 pieces" in found.summary


def test_f20_shape_not_replayed():
    found = submit(Gate.VERIFIED, say(1, shapes={}))
    assert (found.code, found.rank, found.summary) == ("F20", 1, "rank 1 did not replay decode 2")


LATE = replace(PLAN, verify_first=0, rounds=(RoundPlan("prefill", (8, 16, 24, 32, 40)), DECODE))


def test_f20_only_what_is_due_first_must_be_verified_before_ready():
    early, decode = LATE.shapes[0], {f"decode {shape}" for shape in DECODE.shapes}
    assert early == ("prefill", 40)
    verdict = ShapeVerdict(0.0, 0.0, "d", 2, {1: "attention"})
    said = dict.fromkeys({"prefill 8", "prefill 40", *decode}, verdict)
    assert isinstance(submit(Gate.VERIFIED, every(shapes=said), LATE), Release)
    found = submit(Gate.VERIFIED, every(shapes={name: said[name] for name in decode}), LATE)
    assert (found.code, found.summary) == ("F20", "rank 0 did not replay prefill 40")


@pytest.mark.parametrize(
    ("change", "code", "rank"),
    [
        ({}, None, None),
        ({"max_error": 1.0}, "F12", 1),
        ({"digest": "other"}, "F12", 1),
        ({"graphs": 1}, "F20", 1),
    ],
)
def test_f12_a_shape_that_is_verified_later(change, code, rank):
    step = Step(Gate.LATER, "prefill", 24)
    history = {Step(Gate.WARMED): arrivals(LATE, Step(Gate.WARMED))}
    good = arrivals(LATE, step)
    assert check(LATE, step, good, history) is None
    found = check(LATE, step, say(1, shapes={"prefill 24": replace(VERDICT, **change)})(good), history)
    assert (found and (found.code, found.rank, found.step)) == (code and (code, rank, step))


def test_ranks_that_have_something_else_to_do_all_say_so():
    step = Step(Gate.LATER, "prefill", 24)
    good = arrivals(LATE, step)
    assert check(LATE, step, every(shapes={})(good), {Step(Gate.WARMED): arrivals(LATE, Step(Gate.WARMED))}) is None
    found = check(LATE, step, say(1, shapes={})(good), {Step(Gate.WARMED): arrivals(LATE, Step(Gate.WARMED))})
    assert (found.code, found.rank) == ("F12", 1)


SGLANG = (*range(4, 33, 4), *range(48, 257, 16), *range(288, 513, 32))


@pytest.mark.parametrize(
    ("shapes", "others", "first"),
    [
        ((5, 3, 9), None, {3, 5, 9}),
        ((), 4, set()),
        ((7,), 0, {7}),
        ((7, 9), 0, {7, 9}),
        ((8, 16, 24, 32), 0, {8, 32}),
        ((32, 24, 16, 8), 1, {8, 24, 32}),
        ((8, 16, 24, 32), 2, {8, 16, 24, 32}),
        ((8, 16, 24, 32), 9, {8, 16, 24, 32}),
        ((1, 2, 4, 8, 16), 0, {1, 2, 4, 8, 16}),
        (SGLANG, 0, {4, 32, 48, 256, 288, 512}),
        (SGLANG, 3, {4, 32, 48, 256, 288, 512, 24, 160, 384}),
    ],
)
def test_edges_and_a_sample_are_verified_first(shapes, others, first):
    assert first_verified(shapes, others) == first


def test_f20_graph_after_register():
    found = submit(Gate.READY, say(1, graphs=14))
    assert (found.code, found.summary) == ("F20", "rank 1 held 12 graphs after REGISTER and 14 now")


def test_every_rank_loads_as_many_tensors():
    found = submit(Gate.LOADED, say(1, tensors=7))
    assert (found.code, found.rank, found.summary) == (None, 1, "ranks loaded different numbers of tensors")


@pytest.mark.parametrize(
    ("values", "odd"),
    [("aa", None), ("a", None), ("", None), ("ab", 1), ("abb", 0), ("aba", 1), ("aabb", 2), ("abc", 1), ("baaa", 0)],
)
def test_odd_one(values, odd):
    assert odd_one(dict(enumerate(values))) == odd


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (73 << 20, "73.0 MiB"), (5 << 40, "5120.0 GiB")]
)
def test_human_bytes(size, text):
    assert human_bytes(size) == text


@pytest.mark.parametrize(
    ("name", "shape"), [("prefill 128", ("prefill", 128)), ("decode 2", ("decode", 2)), ("what", (None, None))]
)
def test_named_shape(name, shape):
    step = named_shape(Step(Gate.VERIFIED), name)
    assert (step.round, step.shape) == shape
