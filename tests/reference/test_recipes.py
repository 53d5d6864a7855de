"""Which tensors are tied, which files are read, which models run: decisions over plain data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from raylaunch_actors.reference.recipes import Ties, resolve_ties
from raylaunch_actors.reference.supported import why_unsupported
from raylaunch_actors.reference.weight_files import ADAPTER, INDEX, SINGLE, weight_files

from raylaunch.errors import RankFault

PAIR = {"head": "embed"}
THREE = {"head": "embed", "decoder": "embed"}


@pytest.mark.parametrize(
    ("configured", "present", "equal", "ties"),
    [
        (PAIR, "embed", "", Ties({"head": "embed"})),
        (PAIR, "embed head", "head=embed", Ties({"head": "embed"})),
        (PAIR, "embed head", "", Ties()),
        (PAIR, "head", "", Ties({"head": "embed"}, {"embed": "head"})),
        (PAIR, "", "", Ties()),
        ({}, "embed head", "head=embed", Ties()),
        (THREE, "embed", "", Ties({"head": "embed", "decoder": "embed"})),
        (THREE, "decoder", "", Ties({"head": "embed", "decoder": "embed"}, {"embed": "decoder"})),
        (THREE, "head", "", Ties({"head": "embed", "decoder": "embed"}, {"embed": "head"})),
        (THREE, "head decoder", "", Ties({"head": "embed"}, {"embed": "head"})),
        (THREE, "head decoder", "decoder=head", Ties({"head": "embed", "decoder": "embed"}, {"embed": "head"})),
        (THREE, "embed decoder", "", Ties({"head": "embed"})),
    ],
)
def test_ties_are_those_of_the_checkpoint(configured: dict[str, str], present: str, equal: str, ties: Ties) -> None:
    assert resolve_ties(configured, present.split(), lambda one, other: f"{one}={other}" in equal) == ties


def test_where_a_stored_tensor_goes() -> None:
    ties = Ties({"head": "embed", "decoder": "embed"}, {"embed": "head"})
    assert [ties.place_of(name) for name in ("head", "decoder", "norm")] == ["embed", None, "norm"]


def index(*files: str) -> str:
    return json.dumps({"weight_map": {f"t{number}": file for number, file in enumerate(files)}})


A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("files", "config", "read"),
    [
        ([SINGLE], {}, [SINGLE]),
        ([A, B], {}, [A, B]),
        ([A, B, SINGLE], {}, [SINGLE]),
        ([SINGLE, "consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin"], {}, [SINGLE]),
        ([A, B, "consolidated.safetensors"], {}, [A, B]),
        ([SINGLE, "other.safetensors"], {"transformers_weights": "other.safetensors"}, ["other.safetensors"]),
    ],
)
def test_files_are_those_that_transformers_reads(files: list, config: dict, read: list, tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).touch()
    (tmp_path / INDEX).write_text(index(B, A, B))  # beside model.safetensors it does not count
    assert [file.name for file in weight_files(tmp_path, config)] == read


@pytest.mark.parametrize("config", [{}, {"transformers_weights": A}])
def test_files_may_be_links_out_of_the_folder(config: dict, tmp_path: Path) -> None:
    """As those of the Hub's cache are."""
    (tmp_path / "blob").touch()
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / A).symlink_to("../blob")
    (folder / INDEX).write_text(index(A))
    assert weight_files(folder, config) == [folder / A]


@pytest.mark.parametrize(
    ("files", "config", "message"),
    [
        ({}, {}, "holds neither .*; model.load_format=dummy needs none"),
        ({"pytorch_model.bin": ""}, {}, "holds neither .* pickled, and only safetensors are read"),
        ({"model.gguf": ""}, {}, "GGUF"),
        ({"model.fp16.safetensors": ""}, {}, "model.fp16.safetensors would not be read by transformers either"),
        ({INDEX: index(A, B), B: ""}, {}, rf"{A}: named by {INDEX} and not there"),
        ({INDEX: index("../a.safetensors", A), A: ""}, {}, r"json: \.\./a.safetensors: weight_map must"),
        ({INDEX: index("/a.safetensors"), A: ""}, {}, "index.json: /a.safetensors: weight_map must"),
        ({INDEX: index("x" * 5000)}, {}, r"x{200}\.\.\.: named by .* and not there"),
        ({INDEX: "{"}, {}, "index.json is damaged"),
        ({INDEX: "[" * 100_000}, {}, "index.json is damaged: ValueError: it is nested too deep"),
        ({INDEX: "{}"}, {}, "index.json is damaged: KeyError"),
        ({INDEX: '{"weight_map": {}}'}, {}, "weight_map must name"),
        ({SINGLE: "", ADAPTER: "{}"}, {}, "adapter_config.json: transformers would change the model by this adapter"),
        ({SINGLE: "", "shard-00001-model-00001-of-00002.safetensors": ""}, {}, "a distributed checkpoint"),
        ({SINGLE: ""}, {"transformers_weights": "../x.safetensors"}, "no safetensors file in the folder"),
        ({SINGLE: ""}, {"transformers_weights": "x.safetensors"}, "= x.safetensors does not exist"),
        ({}, {"transformers_weights": "x" * 5000 + ".safetensors"}, r"= x{200}\.\.\. does not exist"),
    ],
)
def test_weights_that_cannot_be_read_are_one_line(files: dict, config: dict, message: str, tmp_path: Path) -> None:
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(RankFault, match=message) as caught:
        weight_files(tmp_path, config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "llama"}, None),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, None),
        ({"model_type": "dots1", "sliding_window": 4096, "layer_types": ["full_attention"] * 2}, None),
        ({"model_type": "gemma2", "attn_logit_softcapping": None, "final_logit_softcapping": 30.0}, None),
        ({"model_type": "mistral", "sliding_window": 4096}, r"sliding window attention \(4096 tokens\)"),
        (
            {"model_type": "x", "layer_types": ["full_attention", "sliding_attention"]},
            "layers of type sliding_attention",
        ),
        (
            {"model_type": "x", "text_config": {"layer_types": ["chunked_attention"]}},
            "layers of type chunked_attention",
        ),
        ({"model_type": "x", "rope_scaling": {"type": "longrope"}}, "'longrope'"),
        ({"model_type": "x", "rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "'dynamic'"),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "multi-head latent attention"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"model_type": "x", "quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
        ({"model_type": "x", "num_experts": 8, "hidden_act": "gelu"}, "experts with activation 'gelu'"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "models with an encoder"),
        ({"model_type": "gpt_oss"}, "attention sinks"),
        ({"model_type": "qwen3_next"}, "linear attention"),
        ({"model_type": "gpt2"}, "its decoder is older"),
    ],
)
def test_models_are_refused_by_their_configuration(config: dict, why: str | None) -> None:
    said = why_unsupported(config)
    if why is None:
        assert said is None
    else:
        assert said is not None
        assert said.startswith(f"{config['model_type']}: ")
        assert re.search(why, said), said
