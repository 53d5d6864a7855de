from __future__ import annotations

import pytest
import torch
from raylaunch_actors.reference.tensor_parallel import (
    REPLICATED,
    RowParallelLinear,
    Split,
    TensorParallelPlan,
    insert_all_reduces,
    with_norms_of_heads,
)
from torch import nn

from raylaunch.errors import RankFault

PLAN = TensorParallelPlan(
    {
        "model.layers.*.mlp.up_proj": "colwise",
        "model.layers.*.mlp.down_proj": "rowwise",
        "model.layers.*.mlp.experts": "moe_tp_experts",
        "model.layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "model.layers.*.mlp.experts.down_proj": "rowwise",
        "model.layers.*.q_norm": "replicated_with_grad_allreduce",
    }
)


@pytest.mark.parametrize(
    ("name", "dims", "split"),
    [
        ("model.layers.11.mlp.up_proj.weight", 2, Split(-2)),
        ("model.layers.0.mlp.up_proj.bias", 1, Split(-1)),
        ("model.layers.0.mlp.down_proj.weight", 2, Split(-1)),
        ("model.layers.0.mlp.down_proj.bias", 1, REPLICATED),
        ("model.layers.0.mlp.experts.gate_up_proj", 3, Split(-2, blocks=2)),
        ("model.layers.0.mlp.experts.down_proj", 3, Split(-1)),
        ("model.layers.0.q_norm.weight", 1, REPLICATED),
        ("model.embed_tokens.weight", 2, REPLICATED),
        ("lm_head.weight", 2, REPLICATED),
    ],
)
def test_plan_lookup(name: str, dims: int, split: Split) -> None:
    PLAN.check()
    assert PLAN.split(name, dims) == split


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(("split", "shape"), [(Split(-2), (8, 6)), (Split(-1), (3, 8)), (Split(-1), (8,))])
def test_the_ranks_parts_make_up_the_whole(split: Split, shape: tuple[int, ...], world_size: int) -> None:
    full = torch.arange(float(torch.tensor(shape).prod())).view(shape)
    parts = [split.shard("w", full, rank, world_size) for rank in range(world_size)]
    assert all(tuple(p.shape) == split.local_shape("w", shape, 0, world_size) for p in parts)
    assert torch.equal(torch.cat(parts, split.dim or 0), full)


def test_blocks_are_divided_one_by_one() -> None:
    full = torch.arange(8)[:, None].expand(8, 2)
    split = Split(-2, blocks=2)
    assert split.shard("w", full, 0, 2)[:, 0].tolist() == [0, 1, 4, 5]
    assert split.shard("w", full, 1, 2)[:, 0].tolist() == [2, 3, 6, 7]
    assert split.local_shape("w", (8, 2), 1, 2) == (4, 2)


def test_what_does_not_divide_is_named() -> None:
    with pytest.raises(RankFault, match=r"layer\.w: dimension 0 of \[6, 2\] does not divide into 4"):
        Split(-2).ranges("layer.w", (6, 2), 0, 4)


def test_norms_with_a_row_for_each_head_are_divided_with_the_heads() -> None:
    layer = "model.layers.*.self_attn"
    shapes = {"model.layers.0.self_attn.q_norm.weight": (4, 16), "model.layers.0.self_attn.k_norm.weight": (16,)}
    projections = {f"{layer}.q_proj": "colwise", f"{layer}.k_proj": "colwise"}
    assert with_norms_of_heads(projections, shapes) == {**projections, f"{layer}.q_norm": "colwise"}
    assert with_norms_of_heads({f"{layer}.q_proj": "replicate"}, shapes) == {f"{layer}.q_proj": "replicate"}


def test_unknown_style_is_named() -> None:
    with pytest.raises(RankFault, match=r"'sequence_parallel' for model\.norm"):
        TensorParallelPlan({"model.norm": "sequence_parallel"}).check()


def test_all_reduces_are_inserted_where_the_plan_says() -> None:
    model = nn.Module()
    model.up, model.down = nn.Linear(4, 8), nn.Linear(8, 4)
    assert insert_all_reduces(model, TensorParallelPlan({"up": "colwise", "down": "rowwise"}), "tp") == 1
    assert type(model.up) is nn.Linear
    assert isinstance(model.down, RowParallelLinear)
    with pytest.raises(RankFault, match="no tensor-parallel plan"):
        insert_all_reduces(nn.Sequential(nn.Linear(2, 2)), TensorParallelPlan({}), "tp")
    with pytest.raises(RankFault, match=r"only nn\.Linear"):
        insert_all_reduces(nn.ModuleDict({"e": nn.Embedding(2, 2)}), TensorParallelPlan({"e": "rowwise"}), "tp")
