"""What a rank loads: its part, all of it, and a clear error otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from raylaunch_actors.reference.checkpoint import INDEX, SINGLE, Checkpoint
from raylaunch_actors.reference.model import LoadedModel, load_model
from raylaunch_actors.reference.tensor_parallel import REPLICATED, Split
from raylaunch_actors.reference.weights import tied_names
from safetensors.torch import load_file, save_file

from raylaunch.errors import RankFault
from tests.models import BUILDERS, save

CPU = torch.device("cpu")


def load(path: Path, rank: int = 0, world_size: int = 1, **options: Any) -> LoadedModel:
    return load_model(path, rank, world_size, CPU, **options)


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    """A copy of the tied model, to be damaged."""
    return Path(shutil.copytree(save("qwen3_tied", models), tmp_path / "model"))


def change_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def change_tensors(path: Path, drop: tuple[str, ...] = (), **more: torch.Tensor) -> None:
    tensors = {k: v for k, v in load_file(path / SINGLE).items() if k not in drop}
    save_file({**tensors, **{k.replace("__", "."): v for k, v in more.items()}}, path / SINGLE)


def test_slices(models: Path) -> None:
    path = save("qwen3_tied", models)
    whole = load_file(path / SINGLE)
    name = "model.layers.0.mlp.up_proj.weight"
    for split in (Split(-2), Split(-1), Split(-2, blocks=2)):
        checkpoint = Checkpoint(path)
        checkpoint.open()
        parts = [checkpoint.read(name, split, rank, 4) for rank in range(4)]
        assert all(torch.equal(part, split.of(name, whole[name], rank, 4)) for rank, part in enumerate(parts))
        assert checkpoint.bytes_read == whole[name].nbytes
    assert torch.equal(checkpoint.read(name, REPLICATED, 3, 4), whole[name])


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_models_make_up_the_whole_model(name: str, world_size: int, models: Path) -> None:
    path = save(name, models)
    whole = dict(load(path).model.named_parameters())
    ranks = [load(path, rank, world_size) for rank in range(world_size)]
    divided = 0
    for parameter, value in whole.items():
        parts = [rank.model.get_parameter(parameter) for rank in ranks]
        if parts[0].shape == value.shape:
            assert all(torch.equal(part, value) for part in parts), parameter
            continue
        divided += 1
        (dim,) = (d for d in range(value.dim()) if parts[0].shape[d] != value.shape[d])
        if "gate_up_proj" in parameter:  # gate and up are divided each
            halves = [part.chunk(2, dim) for part in parts]
            joined = torch.cat([half[0] for half in halves] + [half[1] for half in halves], dim)
        else:
            joined = torch.cat(parts, dim)
        assert torch.equal(joined, value), parameter
    assert divided >= 4 * 6
    total = sum(value.nbytes for value in whole.values())
    for rank in ranks:
        assert rank.report.bytes_read == rank.report.parameter_bytes < total
        assert rank.report.all_reduces == 8
        assert rank.facts.kv_heads == 4 // world_size
        if name != "qwen2_5_vl":  # its plan names the head only from transformers 5.23 on
            assert rank.facts.lm_head_sharded == (name in ("qwen3_untied", "qwen3_moe"))


def test_parameters_own_their_memory(models: Path) -> None:
    for parameter in load(save("qwen3_tied", models), 1, 2).model.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
        assert parameter.is_contiguous()


def test_dtype_and_progress(models: Path) -> None:
    seen: list[str] = []
    loaded = load(save("qwen3_untied", models), dtype=torch.bfloat16, progress=seen.append)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert len(seen) == loaded.report.tensors == 47
    assert load(save("qwen3_untied", models)).facts.dtype == torch.float32


def test_a_tied_head_is_the_embedding(models: Path) -> None:
    loaded = load(save("qwen3_tied", models), 0, 2)
    assert loaded.lm_head.weight is loaded.embed.weight
    assert tied_names(loaded.model) == {"lm_head.weight": "model.embed_tokens.weight"}


def test_dummy_weights_do_not_depend_on_the_number_of_ranks(models: Path) -> None:
    path = save("qwen3_moe", models)
    one = dict(load(path, load_format="dummy").model.named_parameters())
    two = [load(path, rank, 2, load_format="dummy") for rank in range(2)]
    for name in ("model.layers.0.self_attn.o_proj.weight", "lm_head.weight"):
        parts = [rank.model.get_parameter(name) for rank in two]
        assert torch.equal(torch.cat(parts, 1 if "o_proj" in name else 0), one[name])
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.gate.weight", "model.norm.weight"):
        assert all(torch.equal(rank.model.get_parameter(name), one[name]) for rank in two)
    assert two[0].report.bytes_read == 0
    other = load(path, load_format="dummy", seed=1).model
    assert not torch.equal(other.get_parameter("lm_head.weight"), one["lm_head.weight"])


def test_dummy_weights_need_no_checkpoint(models: Path, tmp_path: Path) -> None:
    shutil.copy(save("qwen3_tied", models) / "config.json", tmp_path)
    assert load(tmp_path, load_format="dummy").report.tensors == 46
    with pytest.raises(RankFault, match=r"holds neither model\.safetensors nor"):
        load(tmp_path)


def test_missing_and_unexpected_tensors_are_named(copy: Path) -> None:
    change_tensors(copy, drop=("model.norm.weight",), model__surprise=torch.zeros(2))
    with pytest.raises(RankFault, match=r"1 missing: model\.norm\.weight; 1 unexpected: model\.surprise"):
        load(copy)


def test_rightly_unused_tensors_are_reported(copy: Path) -> None:
    change_tensors(
        copy, lm_head__weight=torch.zeros(2), model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(2)
    )
    unused = load(copy).report.unused
    assert unused == ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq")


def test_wrong_shape_is_named(copy: Path) -> None:
    change_config(copy, intermediate_size=512)
    with pytest.raises(RankFault, match=r"\.mlp\..*has shape \[.*256.*\], the model's config wants \[.*512.*\]"):
        load(copy)


def test_wrong_number_of_experts_is_named(models: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(save("qwen3_moe", models), tmp_path / "m"))
    change_config(path, num_local_experts=16, num_experts=16)
    with pytest.raises(RankFault, match=r"has 8 experts, the config 16|gate\.weight has shape"):
        load(path)
    change_config(path, num_local_experts=8, num_experts=8)
    change_tensors(path, drop=("model.layers.0.mlp.experts.3.up_proj.weight",))
    with pytest.raises(RankFault, match=r"missing: model\.layers\.0\.mlp\.experts\.gate_up_proj"):
        load(path)


@pytest.mark.parametrize("keep", [0.9, 0.001, 0.0])
def test_truncated_file_is_named(copy: Path, keep: float) -> None:
    data = (copy / SINGLE).read_bytes()
    (copy / SINGLE).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(RankFault, match=r"model\.safetensors \(\d+ bytes\) is damaged"):
        load(copy)


def test_faults_of_the_index_are_named(models: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(save("qwen3_untied", models), tmp_path / "m"))
    index = json.loads((path / INDEX).read_text())
    shard = index["weight_map"]["model.norm.weight"]
    other = next(file for file in index["weight_map"].values() if file != shard)
    index["weight_map"]["model.norm.weight"] = other
    (path / INDEX).write_text(json.dumps(index))
    with pytest.raises(RankFault, match=rf"says that {other} holds model\.norm\.weight, and it does not"):
        load(path)
    (path / shard).unlink()
    with pytest.raises(RankFault, match=f"{shard} is named by the index and does not exist"):
        load(path)
    (path / INDEX).write_text("{")
    with pytest.raises(RankFault, match=r"index\.json is damaged"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, 1, "quantised .fp8"),
        ({"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 2}, 1, "sliding_attention"),
        ({"num_key_value_heads": 2}, 4, "8 attention heads and 2 key/value heads must divide by the 4 ranks"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, 1, "'dynamic'"),
        ({"model_type": "gpt2"}, 1, "GPT2LMHeadModel has no decoder at .model"),
        ({"model_type": "no_such_model"}, 1, "no usable model configuration"),
    ],
)
def test_unsupported_models_are_refused(copy: Path, changes: dict, world_size: int, message: str) -> None:
    change_config(copy, layer_types=None, **changes)
    with pytest.raises(RankFault, match=message):
        load(copy, 0, world_size)


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(RankFault, match="no usable model configuration"):
        load(tmp_path)
