from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from raylaunch_actors.communicator.single import SingleRank
from raylaunch_actors.graphs import context, ops
from raylaunch_actors.graphs.context import ForwardContext, Mode


def test_context_nests_and_ends():
    with pytest.raises(RuntimeError, match="no forward context"):
        context.current()
    outer, inner = (ForwardContext(Mode.EAGER, "prefill", n) for n in (8, 4))
    with context.use(outer):
        with context.use(inner):
            assert context.current() is inner
        assert context.current() is outer
    with pytest.raises(RuntimeError):
        context.current()


def test_group_names():
    one, two = SingleRank(), SingleRank()
    ops.bind_group("a", one)
    ops.bind_group("a", one)
    with pytest.raises(ValueError, match="bound to another"):
        ops.bind_group("a", two)
    assert torch.equal(torch.ops.raylaunch.all_reduce(torch.ones(2), "a"), torch.ones(2))
    ops.unbind_group("a")
    ops.unbind_group("a")
    with pytest.raises(KeyError, match="no communicator is bound to the group 'a'"):
        ops.get_communicator("a")


def test_attention_without_a_batch_touches_nothing():
    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    with context.use(ForwardContext(Mode.WARM, "prefill", 6)):
        out = torch.ops.raylaunch.attention(q, k, k, 1.0, 0)
    assert out.shape == (1, 6, 4, 8)
    assert not out.any()


def test_experts_is_the_weighted_sum():
    torch.manual_seed(0)
    x, gate_up, down = torch.randn(5, 8), torch.randn(3, 12, 8), torch.randn(3, 8, 6)
    idx, w = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [1, 0]]), torch.rand(5, 2)
    out = torch.ops.raylaunch.experts(x, idx, w, gate_up, down)
    for t in range(5):
        total = torch.zeros(8)
        for slot in range(2):
            gate, up = (gate_up[idx[t, slot]] @ x[t]).chunk(2)
            total += w[t, slot] * (down[idx[t, slot]] @ (F.silu(gate) * up))
        torch.testing.assert_close(out[t], total)


@pytest.mark.parametrize("op", ["all_reduce", "attention", "experts"])
def test_fakes_match(op):
    ops.bind_group("fake", SingleRank())
    x, h = torch.randn(1, 4, 6, 8), torch.randn(6, 8)
    args = {
        "all_reduce": (h.t(), "fake"),
        "attention": (x, x, x, 1.0, 0),
        "experts": (
            h,
            torch.zeros(6, 2, dtype=torch.long),
            torch.rand(6, 2),
            torch.randn(3, 4, 8),
            torch.randn(3, 8, 2),
        ),
    }[op]
    overload = getattr(torch.ops.raylaunch, op).default
    with context.use(ForwardContext(Mode.EAGER, "prefill", 6)):
        torch.library.opcheck(overload, args, test_utils=("test_schema", "test_faketensor"))
    ops.unbind_group("fake")
