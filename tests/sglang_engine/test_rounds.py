"""What a rank does at SGLang's capture rounds, played through without SGLang: gates, counts, refusals."""

from __future__ import annotations

import types
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from raylaunch_actors.sglang_engine import communicators
from raylaunch_actors.sglang_engine import rounds as rounds_module
from raylaunch_actors.sglang_engine.pieces import NO_SIZE, Pieces
from raylaunch_actors.sglang_engine.recorded import Recorded
from raylaunch_actors.sglang_engine.rounds import Rounds

from raylaunch.errors import RankFault
from raylaunch.protocol import Gate, RoundPlan, Step


class Gatekeeper:
    """Takes note of every arrival and lets everybody through."""

    def __init__(self):
        self.arrivals, self.failure = [], None

    def arrive(self, gate, facts=None, *, round=None, shape=None, iteration=None, offer=None):
        self.arrivals.append((Step(gate, round, shape, iteration), facts))

    def progress(self, activity):
        pass

    def set_rounds(self, rounds):
        pass

    def fail(self, error):
        self.failure = error

    @property
    def steps(self):
        return [step for step, _ in self.arrivals]


class Graph:
    """In place of ``torch.cuda.CUDAGraph``, which a machine without a GPU cannot make."""


class Piece:
    """What is read of SGLang's ``CUDAPiecewiseBackend``."""

    def __init__(self, index, shapes=(), sizes=(0,), warm=()):
        self.piecewise_compile_index, self.sym_shape_indices = index, list(sizes)
        self.first_run_finished = True
        self.concrete_size_entries = {shape: Entry(object(), 1) for shape in shapes}
        self.concrete_size_entries |= {shape: Entry(None, warms) for shape, warms in warm}


@dataclass
class Entry:
    """What is read of SGLang's ``ConcreteSizeEntry``."""

    cudagraph: object
    num_finished_warmup: int


@dataclass(frozen=True)
class Key:
    """What is read of SGLang's ``ShapeKey``."""

    size: int


@pytest.fixture
def rounds(monkeypatch):
    one = Rounds(types.SimpleNamespace(rank=1), Gatekeeper())
    one.plans = (RoundPlan("prefill", (8, 32), 2), RoundPlan("decode", (4,), 3))
    one.runner = types.SimpleNamespace(backend=types.SimpleNamespace())
    monkeypatch.setattr(communicators, "pending", lambda: sum(len(log) for log in waiting(one)))
    return one


def waiting(rounds):
    current = rounds._round
    return rounds.recorded.sizes(current.name).values() if current else []


def capture(rounds, shape, passes, recorded=0):
    """One shape as SGLang's backends go through it: every pass but the last is followed by a hook."""
    rounds.begin_shape(shape, plain=True)
    for number in range(1, passes + 1):
        rounds.iteration()
        if number == passes:
            for _ in range(recorded):
                rounds.record(64, (shape, 8), "torch.bfloat16")
        else:
            rounds.between()
    rounds.end_shape()


def test_a_gate_before_every_iteration(rounds):
    rounds.begin("prefill")
    capture(rounds, 32, 2, recorded=3)
    capture(rounds, 8, 2, recorded=3)
    rounds.captured()
    rounds.registered()
    assert rounds.gate.steps == [
        Step(Gate.ITERATION, "prefill", 32, 1), Step(Gate.ITERATION, "prefill", 32, 2),
        Step(Gate.ITERATION, "prefill", 8, 1), Step(Gate.ITERATION, "prefill", 8, 2),
        Step(Gate.CAPTURED, "prefill"), Step(Gate.REGISTERED, "prefill"),
    ]  # fmt: skip
    facts = rounds.gate.arrivals[4][1]
    assert {shape: inputs.count for shape, inputs in facts.recorded.items()} == {32: 3, 8: 3}
    assert facts.in_graphs == {32: 3, 8: 3}
    assert facts.sizes[8] == (64, 64, 64)


def test_backends_that_warm_twice_get_three_gates(rounds):
    rounds.begin("decode")
    capture(rounds, 4, 3)
    assert [step.iteration for step in rounds.gate.steps] == [1, 2, 3]


def test_one_iteration_too_many_is_told_to_the_driver(rounds):
    rounds.begin("prefill")
    rounds.begin_shape(8, plain=True)
    for _ in range(3):
        rounds.iteration()
    assert rounds.gate.steps[-1] == Step(Gate.ITERATION, "prefill", 8, 3)
    with pytest.raises(RankFault, match="ran 3 iterations, 2 were planned") as caught:
        rounds.end_shape()
    assert caught.value.code == "F01"


def test_one_iteration_too_few_is_an_error(rounds):
    rounds.begin("decode")
    with pytest.raises(RankFault, match="ran 2 iterations, 3 were planned"):
        capture(rounds, 4, 2)


def test_variants_of_a_shape_pass_no_gate_and_are_recorded_with_it(rounds):
    rounds.begin("prefill")
    capture(rounds, 8, 2, recorded=1)
    before = len(rounds.gate.arrivals)
    rounds.begin_shape(8, plain=False)
    rounds.iteration()
    rounds.between()
    rounds.iteration()
    rounds.record(64, (8, 8), "torch.bfloat16")
    rounds.end_shape()
    assert len(rounds.gate.arrivals) == before
    assert rounds.recorded.facts("prefill")[8].count == 2


def test_no_replay_before_the_last_round_is_registered(rounds):
    graphs = []
    for name, shape, passes in (("prefill", 8, 2), ("decode", 4, 3)):
        rounds.begin(name)
        graphs.append(Graph())
        rounds.before_graph(graphs[-1])
        capture(rounds, shape, passes)
        with pytest.raises(RankFault, match="replayed before") as caught:
            rounds.before_replay(graphs[0])
        assert caught.value.code == "F01"
        rounds.captured()
        rounds.registered()
    for graph in graphs:
        rounds.before_replay(graph)
    assert rounds.replays == 2


def test_graphs_that_sglang_times_for_itself_are_none_of_a_rounds(rounds):
    own = Graph()
    rounds.before_graph(own, "pool")
    rounds.before_replay(own)
    rounds.begin("prefill")
    capture(rounds, 8, 2)
    rounds.before_replay(own)
    rounds.captured()
    assert rounds.gate.arrivals[-1][1].replays == rounds.replays == 0


def test_no_graph_after_the_last_round_is_registered(rounds):
    rounds.begin("decode")
    rounds.before_graph(Graph())
    capture(rounds, 4, 3)
    rounds.captured()
    rounds.registered()
    with pytest.raises(RankFault, match="after REGISTER") as caught:
        rounds.before_graph(Graph())
    assert caught.value.code == "F20"


def test_an_all_reduce_captured_outside_of_a_round_is_refused(rounds):
    with pytest.raises(RankFault) as caught:
        rounds.record(64, (8, 8), "torch.bfloat16")
    assert caught.value.code == "F02"


@pytest.mark.parametrize(
    ("inside", "captured", "staged", "refused"),
    [
        (True, True, False, False),
        (True, False, True, False),  # the first pass of SGLang's tc_piecewise
        (True, True, True, True),
        (False, True, False, True),
        (False, False, True, True),  # a warm-up, in which peers that are inside only act as if they reduced
    ],
)
def test_an_all_reduce_outside_of_the_capture_context_is_refused(
    inside, captured, staged, refused, rounds, monkeypatch
):
    ours, other = (
        types.SimpleNamespace(_ptr=7, _IS_CAPTURING=inside),
        types.SimpleNamespace(_ptr=8, _IS_CAPTURING=not inside),
    )
    monkeypatch.setattr(communicators, "active", lambda: [other, ours])
    rounds.reduces(7, captured=False, staged=True)  # before any round
    rounds.begin("prefill")
    rounds.begin_shape(8, plain=True)
    with pytest.raises(RankFault, match="capture context") if refused else nullcontext() as caught:
        rounds.reduces(7, captured, staged)
    assert not refused or caught.value.code == "F02"
    rounds.iteration()
    rounds.between()
    rounds.iteration()
    rounds.end_shape()
    rounds.reduces(7, captured=False, staged=True)  # between shapes


def test_inputs_that_sglang_holds_and_nobody_saw_are_an_error(rounds, monkeypatch):
    rounds.begin("prefill")
    capture(rounds, 8, 2, recorded=2)
    monkeypatch.setattr(communicators, "pending", lambda: 3)
    with pytest.raises(RankFault, match="3 inputs wait for registration and 2 were recorded") as caught:
        rounds.captured()
    assert caught.value.code == "F02"


def test_a_failure_is_said_before_the_context_is_left(rounds, monkeypatch):
    switched = []
    monkeypatch.setattr(communicators, "switch_off", lambda: switched.append(rounds.gate.failure))
    error = ValueError("x")
    rounds.failed(error)
    assert switched == [error]


def test_a_round_that_was_not_planned_is_refused(rounds):
    rounds.plans = rounds.plans[:1]
    with pytest.raises(RankFault, match="decode round that it did not plan"):
        rounds.begin("decode")


def test_a_piece_that_warms_where_it_must_be_captured_is_refused(rounds):
    rounds.begin("prefill")
    rounds.begin_shape(8, plain=True)
    rounds.iteration()
    rounds.before_piece(Piece(3, warm=[(8, 0)]), 8)  # the first iteration is there for that
    rounds.iteration()
    rounds.before_piece(Piece(3, warm=[(8, 1)]), 8)
    with pytest.raises(RankFault, match="piece 3 warms again") as caught:
        rounds.before_piece(Piece(3, warm=[(8, 0)]), 8)
    assert caught.value.code == "F20"


@pytest.mark.parametrize(
    ("prefill", "decode", "plans", "whole"),
    [
        ("tc_piecewise", "full", {"prefill": 2, "decode": 3}, ("decode",)),
        ("breakable", "breakable", {"prefill": 3, "decode": 3}, ("prefill", "decode")),
        ("tc_piecewise", "tc_piecewise", {"prefill": 2, "decode": 3}, ("decode",)),  # SGLang has no pieces for decode
        ("disabled", "full", {"decode": 3}, ("decode",)),
    ],
)
def test_iterations_are_planned_by_the_backend_that_captures(rounds, monkeypatch, prefill, decode, plans, whole):
    shapes = {"prefill": [32, 8], "decode": [4]}
    monkeypatch.setattr(rounds_module, "planned_shapes", lambda *_: {name: shapes[name] for name in plans})
    monkeypatch.setattr(communicators, "custom_all_reduces", list)
    graphs = types.SimpleNamespace(
        prefill=types.SimpleNamespace(backend=prefill), decode=types.SimpleNamespace(backend=decode)
    )
    monkeypatch.setattr(rounds_module, "settled_graphs", lambda: graphs)
    rounds.model_runner = types.SimpleNamespace(max_total_num_tokens=4096)
    rounds.plans = None
    rounds.warmed()
    step, facts = rounds.gate.arrivals[-1]
    assert step == Step(Gate.WARMED)
    assert {plan.name: plan.iterations for plan in facts.rounds} == plans
    assert facts.whole_rounds == whole
    assert facts.kv_tokens == 4096


class Communicator:
    """What is read of a custom all-reduce of SGLang's: one that could not be set up has nothing but ``disabled``."""

    def __init__(self, disabled=False, **attributes):
        self.disabled = disabled
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("found", "planned"),
    [
        ([], 0),
        ([Communicator(disabled=True)], 0),
        ([Communicator(max_size=1 << 20, _graph_inputs=[])], 0),
        ([Communicator(disabled=True), Communicator(max_size=256)], 2 * (2 * 3 + 1)),
        ([Communicator(max_size=1 << 20)], 3 * (2 * 3 + 1)),
    ],
    ids=["none", "not set up", "with a list of its own", "too small for 32 tokens", "all shapes"],
)
def test_inputs_are_planned_for_a_table_that_is_there(rounds, monkeypatch, found, planned):
    monkeypatch.setattr(communicators, "custom_all_reduces", lambda: found)
    config = types.SimpleNamespace(hidden_size=16, num_hidden_layers=3)
    rounds.model_runner = types.SimpleNamespace(model_config=config, dtype=torch.bfloat16)
    assert rounds._planned_inputs() == planned


# ---- pieces and records


def test_which_calls_only_warm_a_piece():
    fresh = Piece(0, warm=[(8, 1)])
    fresh.first_run_finished = False
    assert Pieces.warms(fresh, [8])
    assert Pieces.warms(Piece(0, warm=[(8, 0)]), [8])
    assert not Pieces.warms(Piece(0, warm=[(8, 1)]), [8])
    assert not Pieces.warms(Piece(0, shapes=(8,)), [8])
    assert not Pieces.warms(Piece(0, warm=[(8, 0)]), [9])
    assert not Pieces.warms(Piece(0, sizes=(), warm=[(8, 0)]), [8])


def test_a_shape_is_captured_when_one_set_of_pieces_holds_it():
    pieces, first, second = Pieces(), [Piece(0, (8,)), Piece(1)], [Piece(0), Piece(1, (8,))]
    for one in first + second:
        pieces.add(one)
    pieces.use("prefill", types.SimpleNamespace())
    assert pieces.missing("prefill", 8) == ()
    assert pieces.missing("prefill", 32) == (0, 1)
    assert pieces.graphs("prefill", 8) == 2
    assert pieces.count() == 2


def test_a_piece_without_a_size_is_eager_and_not_missing():
    pieces, made = Pieces(), [Piece(0, (8,)), Piece(1, sizes=())]
    for one in made:
        pieces.add(one)
    pieces.use("prefill", types.SimpleNamespace())
    assert pieces.eager() == {1: NO_SIZE}
    assert pieces.missing("prefill", 8) == ()


def test_whole_passes_are_looked_up_in_their_backend():
    pieces = Pieces()
    pieces.use("decode", types.SimpleNamespace(_graphs={Key(4): object()}))
    assert pieces.whole("decode")
    assert (pieces.missing("decode", 4), pieces.missing("decode", 8)) == ((), (0,))
    assert (pieces.graphs("decode", 4), pieces.count()) == (1, 1)


def test_records_differ_in_order_shape_and_dtype():
    def log(*entries):
        recorded = Recorded()
        for shape, dtype in entries:
            recorded.add("prefill", 8, 64, shape, dtype)
        return recorded.facts("prefill")[8]

    a, b = ((8, 4), "torch.bfloat16"), ((4, 8), "torch.bfloat16")
    assert log(a, b) == log(a, b)
    assert log(a, b) != log(b, a)
    assert log(a) != log(((8, 4), "torch.float16"))
    assert Recorded().facts("decode") == {}
    assert Recorded().count() == 0
