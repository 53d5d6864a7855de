"""Pieces compiled by inductor: one compilation for all sizes, all-reduces inside, close to what eager computes."""

from __future__ import annotations

import pytest
import torch
from raylaunch_actors.communicator.single import SingleRank
from raylaunch_actors.graphs import context
from raylaunch_actors.graphs.context import ForwardContext, Mode
from raylaunch_actors.graphs.inductor import compile_piece
from raylaunch_actors.graphs.whole import WholeModel
from raylaunch_actors.reference.verify import tolerance
from torch import fx

from raylaunch.errors import RankFault
from tests.graphs.decoder import Engine


@pytest.mark.slow
@pytest.mark.parametrize("experts", [False, True])
def test_compiled_pieces_compute_what_eager_does(experts):
    said = []
    compiling = {"compile_piece": compile_piece, "progress": said.append}
    engine = Engine(SingleRank(), dtype=torch.bfloat16, experts=experts, **compiling)
    engine.trace(16, 8)
    assert said == [f"compiling piece{number} of 4" for number in range(4)]
    for shape in (2, 8, 16, 33):
        eager = engine.forward(Mode.EAGER, "prefill", shape, 1, plain=True)
        compiled = engine.forward(Mode.EAGER, "prefill", shape, 1)
        assert float((eager - compiled).abs().max()) <= tolerance(eager, compiled=True)
    assert engine.backend.compiles == 1
    engine.close()


def test_f11_a_piece_whose_sizes_were_lost():
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    with pytest.raises(RankFault, match="argument x are not known") as caught:
        compile_piece(fx.GraphModule({}, graph))
    assert caught.value.code == "F11"


@pytest.mark.parametrize("mode", list(Mode))
def test_pieces_inside_a_whole_model_run_as_they_are(mode):
    seen = []

    def inner(input_ids, position_ids, use_cache):
        seen.append((context.current().mode, context.current().shape))
        return (input_ids + position_ids,)

    with context.use(ForwardContext(mode, "decode", 4)) as outer:
        (out,) = WholeModel(inner, "input_ids")(torch.ones(1, 4), torch.ones(1, 4))
        assert context.current() is outer
    assert seen == [(Mode.EAGER, 4)]
    assert out.eq(2).all()


@pytest.mark.parametrize(("compiled", "units"), [(False, 0), (True, 32)])
def test_a_cpu_is_bitwise_unless_pieces_are_compiled(compiled, units):
    eager = torch.tensor([-4.0, 2.0], dtype=torch.bfloat16)
    assert tolerance(eager, compiled) == units * 2**-7 * 4
