"""A whole model on one rank: compile, split, capture, replay."""

from __future__ import annotations

import gc

import pytest
import torch
from raylaunch_actors.communicator.base import pending_inputs, register_inputs
from raylaunch_actors.communicator.shared_memory import SharedMemoryAllReduce
from raylaunch_actors.communicator.single import SingleRank
from raylaunch_actors.graphs.context import Mode
from torch.utils._pytree import tree_map

from raylaunch.errors import CaptureError, RankFault
from tests.graphs.decoder import Engine


def ignore(round, shape, iteration):
    """No gate."""


@pytest.fixture(scope="module")
def traced():
    """Models that were compiled, by what they are of."""
    made = {}
    yield made
    for engine in made.values():
        engine.close()


@pytest.fixture
def make(traced):
    used = []

    def make(shared=False, dtype=torch.float32, experts=False, iterations=2):
        communicator = SingleRank()
        if shared:
            communicator = SharedMemoryAllReduce(0, 1, 1 << 14, 1 << 18, 1)
            communicator.attach([communicator.offer()])
        used.append(communicator)
        if (dtype, experts) not in traced:
            traced[dtype, experts] = Engine(communicator, dtype=dtype, experts=experts)
            traced[dtype, experts].trace(16, 8)
        traced[dtype, experts].renew(communicator, iterations)
        return traced[dtype, experts]

    yield make
    for communicator in used:
        communicator.close()


def register(engine):
    return register_inputs(engine.communicator, [pending_inputs(engine.communicator)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("experts", [False, True])
def test_replay_equals_the_plain_model_for_every_round_and_shape(make, dtype, experts):
    engine = make(shared=True, dtype=dtype, experts=experts)
    assert (engine.backend.compiles, len(engine.backend.pieces)) == (1, 4)
    runner, seen = engine.runner(), []
    for round, shapes in (("prefill", [8, 33, 16]), ("decode", [2, 8])):
        runner.capture(round, shapes, lambda *step: seen.append(step))
        assert register(engine) == 6 * len(shapes)
    assert seen[:6] == [("prefill", s, i) for s in (33, 16, 8) for i in (1, 2)]
    assert seen[6:] == [("decode", s, i) for s in (8, 2) for i in (1, 2)]
    keys = {("prefill", 8), ("prefill", 16), ("prefill", 33), ("decode", 2), ("decode", 8)}
    assert runner.audit() == {key: {f"piece{i}": True for i in range(4)} for key in keys}
    assert runner.recorded_inputs() == dict.fromkeys(keys, 6)
    for seed in range(3):
        for key in sorted(keys):
            assert engine.same(*key, seed), key
    assert engine.backend.compiles == 1
    assert engine.backend.pieces[0].replays == 15
    for piece in engine.backend.pieces:  # the decode graphs and the smaller shapes took no more memory
        assert len(piece.pool.regions) <= 3
    assert runner.added.pop(("prefill", 33)) > 0
    assert set(runner.added.values()) == {0}


def test_f20_no_graph_for_a_shape(make):
    engine = make()
    engine.runner().capture("prefill", [8, 16], ignore)
    for round, shape in (("prefill", 12), ("decode", 8)):
        with pytest.raises(
            RankFault, match=f"piece0 has no graph for {round}, shape {shape}: .*prefill 8, prefill 16"
        ) as e:
            engine.forward(Mode.REPLAY, round, shape)
        assert e.value.code == "F20"
    assert engine.same("prefill", 16, 0)


def test_f20_a_wrong_shape_in_the_context(make):
    engine = make()
    engine.runner().capture("prefill", [8, 16], ignore)
    engine.inputs[8] = engine.inputs[16]
    with pytest.raises(RankFault) as caught:
        engine.forward(Mode.REPLAY, "prefill", 8)
    assert caught.value.code in ("F20", "F04")


def test_f20_a_second_compile_names_the_guard(make):
    engine = make()
    buffer = torch.zeros(1, 64, dtype=torch.long)
    engine.inputs[20] = buffer[:, :20], torch.arange(20)[None].clone()  # a slice: its stride is guarded
    for mode in (Mode.TRACE, Mode.EAGER):
        with pytest.raises(RankFault, match=r"compiled a second time(?s:.)*stride") as caught:
            engine.forward(mode, "prefill", 20)
        assert caught.value.code == "F20"
    assert engine.backend.compiles == 1


def test_the_first_run_is_a_trace():
    engine = Engine(SingleRank())
    with pytest.raises(RuntimeError, match=r"Mode\.TRACE"):
        engine.forward(Mode.EAGER, "prefill", 8)
    engine.close()


def test_f04_a_parameter_that_moved_is_named(make):
    engine = make()
    engine.runner().capture("prefill", [8], ignore)
    weight = engine.model.layers[1].down.weight
    weight.data = weight.data.clone()
    with pytest.raises(RankFault, match=r"prefill/8/piece2: the address of layers\.1\.down\.weight changed") as caught:
        engine.forward(Mode.REPLAY, "prefill", 8)
    assert caught.value.code == "F04"


def test_weights_may_be_written_in_place(make):
    engine = make()
    engine.runner().capture("prefill", [8], ignore)
    with torch.no_grad():
        engine.model.layers[1].down.weight.mul_(2)
    assert engine.same("prefill", 8, 0)


@pytest.mark.parametrize("shared", [False, True])
def test_f01_a_third_iteration_is_refused(make, shared):
    engine = make(shared=shared, iterations=3)
    seen = []
    with pytest.raises(RankFault, match="piece0 at prefill, shape 16 has been warmed and captured") as caught:
        engine.runner().capture("prefill", [16, 8], lambda *step: seen.append(step))
    assert caught.value.code == "F01"
    assert seen[-1] == ("prefill", 16, 3)
    assert not engine.communicator.capturing
    assert pending_inputs(engine.communicator) == ()


def test_f01_replay_before_registration(make):
    engine = make(shared=True)
    engine.runner().capture("prefill", [8], ignore)
    with pytest.raises(
        RankFault, match="before the input of its all-reduce prefill/8/piece1#0 is registered"
    ) as caught:
        engine.forward(Mode.REPLAY, "prefill", 8)
    assert caught.value.code == "F01"
    register(engine)
    assert engine.same("prefill", 8, 0)


def test_f02_capture_outside_of_the_context(make):
    engine = make()
    engine.forward(Mode.WARM, "prefill", 8)
    with pytest.raises(RankFault, match="prefill/8/piece0 is captured outside") as caught:
        engine.forward(Mode.CAPTURE, "prefill", 8)
    assert caught.value.code == "F02"


def test_capture_needs_a_warm_iteration(make):
    engine = make()
    with engine.communicator.capture(), pytest.raises(CaptureError, match="without a warm iteration"):
        engine.forward(Mode.CAPTURE, "prefill", 8)


def test_f05_an_exception_in_an_iteration_leaves_nothing_behind(make):
    engine = make(shared=True)
    runner = engine.runner()

    def failing(round, shape, iteration):
        assert not gc.isenabled()
        if (shape, iteration) == (8, 2):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        runner.capture("prefill", [16, 8], failing)
    assert gc.isenabled()
    assert not engine.communicator.capturing
    assert pending_inputs(engine.communicator) == ()
    audit = runner.audit()
    assert all(audit["prefill", 16].values())
    assert not any(audit["prefill", 8].values())


def test_an_operation_that_cannot_be_captured_names_piece_and_shape(make):
    def noisy(value):
        return value + torch.rand(()) if isinstance(value, torch.Tensor) else value

    engine = make()
    hook = engine.backend.pieces[2].module.register_forward_hook(lambda module, args, out: tree_map(noisy, out))
    with hook, pytest.raises(CaptureError, match=r"prefill/8/piece2: aten\.rand.* draws random numbers"):
        engine.runner().capture("prefill", [8], ignore)
    assert [p.graphs() for p in engine.backend.pieces] == [{("prefill", 8)}, {("prefill", 8)}, set(), set()]
