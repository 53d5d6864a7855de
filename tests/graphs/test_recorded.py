from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from raylaunch_actors.communicator.base import pending_inputs, register_inputs
from raylaunch_actors.communicator.shared_memory import SharedMemoryAllReduce
from raylaunch_actors.communicator.single import SingleRank
from raylaunch_actors.graphs import ops
from raylaunch_actors.graphs.backend import GraphLabel
from raylaunch_actors.graphs.binding import out_variant
from raylaunch_actors.graphs.recorded import RecordedGraphs
from torch.utils._python_dispatch import _get_current_dispatch_mode

from raylaunch.errors import CaptureError, RankFault

LABEL = GraphLabel("prefill", 8, "piece0")


@pytest.fixture(params=["single", "shared-memory"])
def communicator(request):
    """Of one rank."""
    made = SingleRank()
    if request.param == "shared-memory":
        made = SharedMemoryAllReduce(0, 1, 4096, 1 << 17, 1)
        made.attach([made.offer()])
    ops.bind_group("recorded", made)
    yield made
    ops.unbind_group("recorded")
    made.close()


def capture(communicator, fn, *inputs, label=LABEL, pool=None, **options):
    graphs = RecordedGraphs(communicator)
    pool = pool or graphs.new_pool()
    with communicator.capture():
        graph = graphs.capture(fn, inputs, label, pool, **options)
    register_inputs(communicator, [pending_inputs(communicator)])
    return graph, pool


def reduce(x):
    return torch.ops.raylaunch.all_reduce(x, "recorded")


WEIGHT, BIAS, TABLE = torch.randn(12, 8), torch.randn(12), torch.randn(20, 8)
CASES = {
    "linear with bias": lambda x: F.linear(x, WEIGHT.to(x.dtype), BIAS.to(x.dtype)),
    "all-reduce in the middle": lambda x: reduce(x * 2) + x,
    "two all-reduces": lambda x: reduce(reduce(x.exp()).sin() + x),
    "all-reduce of an input and of a view": lambda x: (
        reduce(x),
        reduce((x + 1)[:, 2:4]),
        reduce((x - 1).transpose(1, 2)),
    ),
    "views, chunks, cat": lambda x: torch.cat([p.relu() for p in x.chunk(2, -1)], -1).view(-1, 4).t(),
    "integer gather": lambda x: TABLE[(x[0, :, 0].long() % 20).abs()],
    "casts and constants": lambda x: (
        x.float() * torch.arange(8) + torch.tensor(3.0) + torch.ones(8, dtype=torch.bfloat16)
    ),
    "in place on its own memory": lambda x: (x * 2).add_(1).clamp_(min=0),
    "several outputs": lambda x: (x.topk(2, -1), x.sum(-1), [x.max(-1), 7]),
    "softmax, norm, mean": lambda x: F.layer_norm(x, (8,)).softmax(-1).mean(1),
    "returns its input": lambda x: (x, x.view(-1)),
    "masked": lambda x: torch.where(x > 0, x, x.exp()).tril(),
    "no tensor work": lambda x: (x, 5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_replay_equals_eager_bit_by_bit(communicator, case, inference, dtype):
    fn = CASES[case]
    generator = torch.Generator().manual_seed(1)
    xs = [(torch.randn(1, 8, 8, generator=generator) * 3).to(dtype) for _ in range(3)]
    with torch.inference_mode(inference):
        static = xs[0].clone()
        graph, pool = capture(communicator, fn, static)
        torch.testing.assert_close(graph.outputs, fn(xs[0]), rtol=0, atol=0)  # the captured run's result is valid
        for x in xs[1:]:
            pool.poison()
            static.copy_(x)
            torch.testing.assert_close(graph.replay(), fn(x), rtol=0, atol=0)
    assert graph.replay() is graph.outputs  # also outside of the mode it was captured in


def test_outputs_stay_where_they_are_and_shapes_share_memory(communicator):
    graphs = RecordedGraphs(communicator)
    pool = graphs.new_pool()
    inputs = {n: torch.randn(n, 16) for n in (64, 32)}
    captured = {
        n: capture(communicator, lambda x: reduce(x * 2) * 3, x, label=GraphLabel("prefill", n, "p"), pool=pool)[0]
        for n, x in inputs.items()
    }
    assert len(pool.regions) == 2  # shared and private, made by the largest
    for n in (64, 32, 64):
        assert torch.equal(captured[n].replay(), inputs[n] * 2 * 3)
    assert captured[64].outputs.untyped_storage().data_ptr() == captured[32].outputs.untyped_storage().data_ptr()


def test_growing_leaves_older_graphs_alone(communicator):
    pool = RecordedGraphs(communicator).new_pool()
    inputs = {n: torch.randn(n, 16) for n in (8, 64)}
    captured = {
        n: capture(communicator, lambda x: reduce(x * 2) * 3, x, label=GraphLabel("prefill", n, "p"), pool=pool)[0]
        for n, x in inputs.items()
    }
    for n in (8, 64, 8):
        assert torch.equal(captured[n].replay(), inputs[n] * 2 * 3)


@pytest.mark.parametrize(
    ("fn", "match"),
    [
        (lambda x: x * x.sum().item(), "_local_scalar_dense.* depends on data"),
        (lambda x: x[x > 0], "depends on data"),
        (lambda x: x.nonzero(), "nonzero.* depends on data"),
        (lambda x: x + torch.rand(8), "rand.* draws random numbers"),
        (lambda x: F.dropout(x, 0.5), "draws random numbers"),
        (lambda x: (x * 2).squeeze_(0), "changes a tensor's shape in place"),
        (
            lambda x: torch.ops.raylaunch.attention(x[None], x[None], x[None], 1.0, 0),
            "inside a captured piece",
        ),
        (lambda x: x.add_(1), "writes to an input of the piece"),
        (lambda x: x.view(-1)[:4].zero_(), "writes to an input of the piece"),
    ],
)
def test_what_cannot_be_captured_is_refused_by_name(communicator, fn, match):
    x = torch.randn(1, 8, 8)
    with pytest.raises(CaptureError, match=match) as caught:
        capture(communicator, fn, x, read_only=[x])
    assert "prefill/8/piece0" in str(caught.value)
    assert _get_current_dispatch_mode() is None
    assert not communicator.capturing
    assert pending_inputs(communicator) == ()
    assert capture(communicator, lambda x: x + 1, x)[0].replay().equal(x + 1)  # nothing is left of the failure


def test_f02_outside_of_the_capture_context(communicator):
    graphs = RecordedGraphs(communicator)
    with pytest.raises(RankFault, match="outside the capture context") as caught:
        graphs.capture(reduce, [torch.randn(4)], LABEL, graphs.new_pool())
    assert caught.value.code == "F02"


def test_f01_replay_inside_of_the_capture_context(communicator):
    graphs = RecordedGraphs(communicator)
    x, ran = torch.randn(4), []
    with communicator.capture():
        graph = graphs.capture(lambda x: reduce(x + 1), [x], LABEL, graphs.new_pool())
        graph._program.insert(0, lambda: ran.append(1))
        with pytest.raises(RankFault, match="inside the capture context") as caught:
            graph.replay()
    assert caught.value.code == "F01"
    if communicator.registration:
        with pytest.raises(RankFault, match=r"rank 0: prefill/8/piece0 \(shape 8\).*prefill/8/piece0#0") as caught:
            graph.replay()
        assert caught.value.code == "F01"
    assert not ran


def test_f17_a_full_arena_leaves_nothing_pending():
    communicator = SharedMemoryAllReduce(0, 1, 4096, 1 << 14, 1)
    communicator.attach([communicator.offer()])
    ops.bind_group("recorded", communicator)
    try:
        with pytest.raises(RankFault, match=r"arena is too small.*capture\.prefill_tokens") as caught:
            capture(communicator, lambda x: reduce(x + 1), torch.randn(1 << 14))
        assert caught.value.code == "F17"
        assert pending_inputs(communicator) == ()
    finally:
        ops.unbind_group("recorded")
        communicator.close()


def test_another_group_is_refused(communicator):
    ops.bind_group("other", SingleRank())
    with pytest.raises(CaptureError, match="'other'"):
        capture(communicator, lambda x: torch.ops.raylaunch.all_reduce(x, "other"), torch.randn(4))
    ops.unbind_group("other")


def test_out_variants():
    aten = torch.ops.aten
    assert out_variant(aten.mm.default)[0] is aten.mm.out
    assert out_variant(aten.topk.default)[1] == ("values", "indices")
    assert out_variant(aten.split_copy.Tensor) is None  # a list of outputs
    assert out_variant(torch.ops.raylaunch.experts.default) is None
