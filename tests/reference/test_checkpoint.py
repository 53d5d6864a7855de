"""What a rank loads: its part, all of it, and a clear error otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from raylaunch_actors.reference.checkpoint import Checkpoint
from raylaunch_actors.reference.model import LoadedModel, load_model
from raylaunch_actors.reference.tensor_parallel import REPLICATED, Split
from raylaunch_actors.reference.weight_files import INDEX, SINGLE
from raylaunch_actors.reference.weights import tied_names
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

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
    more = {k.replace("__", "."): v for k, v in more.items()}
    save_file({**tensors, **more}, path / SINGLE, metadata={"format": "pt"})


def test_slices(models: Path) -> None:
    path = save("qwen3_tied", models)
    whole = load_file(path / SINGLE)
    name = "model.layers.0.mlp.up_proj.weight"
    for split in (Split(-2), Split(-1), Split(-2, blocks=2)):
        checkpoint = Checkpoint([path / SINGLE])
        checkpoint.open()
        parts = [checkpoint.read(name, split, rank, 4) for rank in range(4)]
        assert all(torch.equal(part, split.shard(name, whole[name], rank, 4)) for rank, part in enumerate(parts))
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


def test_missing_tensors_are_named_with_those_that_may_be_them(copy: Path) -> None:
    change_tensors(copy, drop=("model.norm.weight",), model__surprise=torch.zeros(2))
    with pytest.raises(RankFault, match=r"1 missing: model\.norm\.weight; 1 unexpected: model\.surprise"):
        load(copy)


def test_all_faults_are_in_one_message(copy: Path) -> None:
    change_tensors(
        copy,
        drop=("model.norm.weight",),
        model__layers__0__mlp__up_proj__weight=torch.zeros(2, 2),
        model__layers__1__mlp__up_proj__weight=torch.zeros(256, 128).to(torch.float8_e4m3fn),
    )
    with pytest.raises(RankFault) as caught:
        load(copy)
    text = str(caught.value)
    assert "1 missing: model.norm.weight" in text
    assert "1 of another shape: model.layers.0.mlp.up_proj.weight has shape [2, 2]" in text
    assert "model.layers.1.mlp.up_proj.weight is stored as F8_E4M3" in text
    assert "\n" not in text


Tensors = dict[str, torch.Tensor]
NEW_HEAD = torch.randn(1024, 128, generator=torch.Generator().manual_seed(3))
MORE = {
    "mtp.fc.weight": torch.zeros(4, 4),
    "model.layers.4.mlp.up_proj.weight": torch.zeros(4, 4),
    "v_head.weight": torch.zeros(1, 128),
    "score.weight": torch.zeros(2, 128),
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2),
    "model.layers.0.self_attn.masked_bias": torch.zeros(()),
}
EMBEDDING = "model.embed_tokens.weight"
CHANGES: dict[str, Callable[[Tensors], Tensors]] = {
    "a head of its own, though tied": lambda t: t | {"lm_head.weight": NEW_HEAD},
    "the head twice": lambda t: t | {"lm_head.weight": t[EMBEDDING].clone()},
    "the head alone": lambda t: {k: v for k, v in t.items() if k != EMBEDDING} | {"lm_head.weight": t[EMBEDDING]},
    "no prefix": lambda t: {k.removeprefix("model."): v for k, v in t.items()},
    "one prefix more": lambda t: {f"model.{k}": v for k, v in t.items()},
    "both names": lambda t: t | {"norm.weight": t["model.norm.weight"] + 1},
    "more tensors": lambda t: t | MORE,
    "half precision": lambda t: {k: v.half() for k, v in t.items()},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_loaded_is_what_transformers_loads(change: str, world_size: int, copy: Path) -> None:
    save_file(CHANGES[change](load_file(copy / SINGLE)), copy / SINGLE, metadata={"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32)
    ranks = [load(copy, rank, world_size, dtype=torch.float32) for rank in range(world_size)]
    for name, value in theirs.state_dict().items():
        parts = [rank.model.state_dict()[name] for rank in ranks]
        different = [d for d in range(value.dim()) if parts[0].shape[d] != value.shape[d]]
        assert torch.equal(torch.cat(parts, different[0]) if different else parts[0], value), name
    apart = change == "a head of its own, though tied"
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) is not apart
    assert (ranks[0].lm_head.weight is ranks[0].embed.weight) is not apart
    assert ranks[0].facts.lm_head_sharded == (apart and world_size > 1)


def test_what_the_model_has_no_place_for_is_reported(copy: Path) -> None:
    change_tensors(copy, **MORE)
    assert set(load(copy).report.unused) == MORE.keys()


def test_a_head_of_another_shape_is_no_copy_of_the_embedding(copy: Path) -> None:
    change_tensors(copy, lm_head__weight=torch.zeros(2))
    with pytest.raises(RankFault, match=r"lm_head\.weight has shape \[2\], the model's config wants \[1024, 128\]"):
        load(copy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_without_a_dtype_in_the_config_it_is_the_weights_own(copy: Path, dtype: torch.dtype) -> None:
    tensors = {name: value.to(dtype) for name, value in load_file(copy / SINGLE).items()}
    save_file({"a": torch.zeros(2, dtype=torch.int64), **tensors}, copy / SINGLE, metadata={"format": "pt"})
    change_config(copy, dtype=None)
    assert load(copy).facts.dtype == dtype == AutoModelForCausalLM.from_pretrained(copy).dtype


def test_the_dtype_that_an_index_names_counts_first(models: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(save("qwen3_untied", models), tmp_path / "m"))
    change_config(path, dtype=None)
    index = json.loads((path / INDEX).read_text())
    index["metadata"]["dtype"] = "bfloat16"
    (path / INDEX).write_text(json.dumps(index))
    assert load(path).facts.dtype == torch.bfloat16 == AutoModelForCausalLM.from_pretrained(path).dtype


def test_other_dtypes_are_refused(copy: Path) -> None:
    change_config(copy, dtype="float64")
    with pytest.raises(RankFault, match=r"dtype torch\.float64: set model\.dtype to float32, bfloat16 or float16"):
        load(copy)


def test_wrong_shape_is_named(copy: Path) -> None:
    change_config(copy, intermediate_size=512)
    with pytest.raises(RankFault, match=r"\.mlp\..*has shape \[.*256.*\], the model's config wants \[.*512.*\]"):
        load(copy)


def test_wrong_number_of_experts_is_named(models: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(save("qwen3_moe", models), tmp_path / "m"))
    change_config(path, num_local_experts=16, num_experts=16)
    with pytest.raises(
        RankFault, match=r"gate_up_proj of 16 tensors has shape \[8, 128, 128\], .* wants \[16, 128, 128\]"
    ):
        load(path)
    change_config(path, num_local_experts=8, num_experts=8)
    change_tensors(path, drop=("model.layers.0.mlp.experts.3.up_proj.weight",))
    with pytest.raises(
        RankFault, match=r"layers\.0\.mlp\.experts\.gate_up_proj of 15 tensors has shape none \(Sizes of"
    ):
        load(path)


@pytest.mark.parametrize("keep", [0.9, 0.001, 0.0])
def test_truncated_file_is_named(copy: Path, keep: float) -> None:
    data = (copy / SINGLE).read_bytes()
    (copy / SINGLE).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(RankFault, match=r"model\.safetensors \(\d+ bytes\) is damaged"):
        load(copy)


def test_of_an_index_only_the_files_names_count(models: Path, tmp_path: Path) -> None:
    """As with transformers: a tensor may be in another of its files, and of two the last file's counts."""
    path = Path(shutil.copytree(save("qwen3_untied", models), tmp_path / "m"))
    index = json.loads((path / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.norm.weight"] = files[0]
    (path / INDEX).write_text(json.dumps(index))
    last = load_file(path / files[-1]) | {EMBEDDING: NEW_HEAD}
    save_file(last, path / files[-1], metadata={"format": "pt"})
    assert torch.equal(load(path).model.get_parameter(EMBEDDING), NEW_HEAD)
    theirs = AutoModelForCausalLM.from_pretrained(path).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in load(path).model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, 1, "quantised .fp8"),
        ({"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 2}, 1, "sliding_attention"),
        ({"num_key_value_heads": 2}, 4, "8 attention heads and 2 key/value heads must divide by the 4 ranks"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, 1, "'dynamic'"),
        ({"model_type": "gpt2"}, 1, "gpt2: its decoder is older"),
        ({"model_type": "biogpt"}, 1, "BioGptForCausalLM has no decoder at .model"),
        ({"model_type": "no_such_model"}, 1, "no usable model configuration: .* does not recognize this architecture"),
        ({"intermediate_size": "64"}, 1, "no usable .* Field 'intermediate_size' expected int, got str .value: '64'"),
        ({"head_dim": 0}, 1, "transformers cannot build a qwen3 model: ZeroDivisionError: "),
        ({"hidden_act": "no_such"}, 1, "transformers cannot build a qwen3 model: KeyError: 'no_such'"),
    ],
)
def test_unsupported_models_are_refused(copy: Path, changes: dict, world_size: int, message: str) -> None:
    change_config(copy, layer_types=None, **changes)
    with pytest.raises(RankFault, match=message) as fault:
        load(copy, 0, world_size)
    assert "\n" not in str(fault.value)


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(RankFault, match="no usable model configuration"):
        load(tmp_path)
