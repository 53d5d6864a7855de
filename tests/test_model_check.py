"""What is refused because of the model, before any actor starts."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from raylaunch.config import LaunchConfig
from raylaunch.config.faults import OF_GPUS
from raylaunch.errors import ConfigError
from raylaunch.model.shape import ModelShape
from raylaunch.model.tokenizer import load_tokenizer
from raylaunch.model_check import check_heads, check_model
from raylaunch.sglang.arguments import installed_folder

GOOD = {
    "architectures": ["Qwen3ForCausalLM"],
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "vocab_size": 100,
    "num_hidden_layers": 3,
    "hidden_size": 64,
}


@pytest.fixture
def check(tmp_path):
    """Checks a model with this ``config.json`` (data or text) and these settings."""

    def run(data=GOOD, *overrides):
        if data is not None:
            (tmp_path / "config.json").write_text(data if isinstance(data, str) else json.dumps(data))
        (tmp_path / "model.safetensors").touch()
        return check_model(LaunchConfig.from_dict({"model": {"path": str(tmp_path)}}).override(*overrides))

    return run


def test_shape_of_a_model(check):
    wanted = ModelShape(
        "Qwen3ForCausalLM", max_positions=2048, vocab_size=100, heads=8, kv_heads=4, layers=3, hidden_size=64
    )
    assert check() == wanted
    assert check({**GOOD, "torch_dtype": "bfloat16"}) == replace(wanted, dtype="bfloat16")
    assert check({**GOOD, "dtype": "float8"}).dtype == ""
    assert check({**GOOD, "num_attention_heads": 4, "num_key_value_heads": None}).kv_heads == 4
    assert check({**GOOD, "architectures": None}).architecture == "unknown"


def test_a_vision_language_model_keeps_its_shape_under_text_config(check):
    inner = {key: value for key, value in GOOD.items() if key not in ("architectures", "vocab_size")}
    outer = {"architectures": ["Qwen2_5_VL"], "vocab_size": 100, "num_attention_heads": 3, "text_config": inner}
    assert check(outer) == ModelShape("Qwen2_5_VL", 2048, 100, 8, 4, layers=3, hidden_size=64)


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        (3, "must divide the model's num_attention_heads = 8; this model can be launched with 1, 2, 4"),
        (8, "must divide the model's num_key_value_heads = 4; this model can be launched with 1, 2, 4"),
    ],
)
def test_heads_must_be_divisible(check, ranks, text):
    with pytest.raises(ConfigError) as caught:
        check(GOOD, f"parallel.tensor_parallel_size={ranks}")
    assert str(caught.value) == f"parallel.tensor_parallel_size = {ranks}: {text}"


def test_shapes_beyond_the_positions(check):
    assert check(GOOD, "capture.prefill_tokens=[8,2048]")
    with pytest.raises(ConfigError) as caught:
        check(GOOD, "capture.prefill_tokens=[8,2049]")
    assert str(caught.value) == (
        "capture.prefill_tokens = [8, 2049]: 2049 is beyond the longest context: 2048, the model's positions; "
        "rotary scaling in its config.json would allow more"
    )
    yarn = {**GOOD, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}}
    assert check(yarn, "capture.prefill_tokens=[8,8192]", "engine.max_context=8192").max_positions == 8192
    with pytest.raises(ConfigError) as caught:
        check(yarn, "engine.max_context=8193")
    assert str(caught.value) == (
        "engine.max_context = 8193: is beyond the longest context: 8192, 2048 positions with the model's rotary scaling"
    )


@pytest.mark.parametrize(
    ("overrides", "key", "text"),
    [
        (["faults=[{action: kill, rank: 2}]", "parallel.tensor_parallel_size=2"], "faults", "only ranks 0 to 1"),
        (["faults=[{action: kill, at: capture prefill 33}]"], "faults.0.at", "captured for 32, 128, 512, 1032"),
        (["faults=[{action: raise}, {action: kill, at: capture decode 3}]"], "faults.1.at", "captured for 2, 8, 32"),
        (["faults=[{action: warm_again, at: capture decode 3}]"], "faults.0.at", "captured for 2, 8, 32"),
        (["faults=[{action: kill, at: capture decode 2 3}]"], "faults.0.at", "a shape has 2 iterations"),
        (["faults=[{action: kill}]", "capture.enabled=false"], "faults.0.at", "needs capture.enabled=true"),
        (["faults=[{action: kill, at: register}]", "capture.enabled=false"], "faults.0.at", "capture.enabled=true"),
        (["faults=[{action: warm_again}]", "capture.enabled=false"], "faults.0.action", "needs capture.enabled=true"),
        (["faults=[{action: strip_symbols}]", "engine=sglang"], "faults.0.action", "of the engine 'reference'"),
        (["faults=[{action: warm_again, at: capture prefill 32}]", "engine=sglang"], "faults.0.at", "leave at out"),
        (["faults=[{action: extra_all_reduce, at: capture decode}]", "engine=sglang"], "faults.0.at", "the shape too"),
        (["engine.sglang.args={page_size: 16}"], "engine.sglang.args", "for the engine 'sglang': set engine.kind"),
        (["engine.device=cpu", "debug=cuda"], "debug", "needs GPUs, and the ranks are on CPUs"),
        (
            ["parallel.tensor_parallel_size=2", "parallel.nodes=2", "placement.strategy=STRICT_PACK"],
            "placement.strategy",
            "packs all ranks on one node, and parallel.nodes is 2: must be auto",
        ),
        (["parallel.routing=prefix"], "parallel.routing", "chooses between replicas: set parallel.replicas above 1"),
        (["capture.prefill_tokens=[1,8]"], "capture.prefill_tokens", "at least 2"),
        (["capture.decode_batch_sizes=[1]"], "capture.decode_batch_sizes", "at least 2"),
        (["engine.max_context=2049"], "engine.max_context", "2048"),
        (["engine.device=cpu", "capture.compiler=inductor"], "capture.compiler", "needs GPUs"),
    ],
)
def test_settings_that_do_not_go_together(check, overrides, key, text):
    with pytest.raises(ConfigError) as caught:
        check(GOOD, *overrides)
    assert caught.value.key == key
    assert text in str(caught.value)


@pytest.mark.parametrize("action", OF_GPUS)
def test_faults_of_gpus_need_gpus(check, action):
    """Where the device is ``auto``, it is known only once the cluster is."""
    fault = f"faults=[{{action: {action}}}]"
    with pytest.raises(ConfigError, match=rf"^faults\.0\.action = '{action}': is a fault of GPUs"):
        check(GOOD, fault, "engine.device=cpu")
    check(GOOD, fault, "engine.device=cuda")
    check(GOOD, fault)


@pytest.mark.skipif(installed_folder() is not None, reason="sglang is installed")
def test_the_engine_sglang_without_sglang(check):
    with pytest.raises(ConfigError, match="sglang is not installed here"):
        check(GOOD, "engine=sglang")


@pytest.mark.parametrize(
    ("ranks", "reference", "sglang"),
    [(1, True, True), (2, True, True), (3, False, False), (4, True, True), (6, False, False), (8, False, True)],
)
def test_sglang_gives_several_ranks_the_same_kv_head(ranks, reference, sglang):
    shape = ModelShape("Qwen3ForCausalLM", max_positions=2048, vocab_size=100, heads=8, kv_heads=4)
    for repeats_kv, able in ((False, reference), (True, sglang)):
        with nullcontext() if able else pytest.raises(ConfigError, match="must divide the model's num_"):
            check_heads(shape, ranks, repeats_kv=repeats_kv)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("{", "its config.json cannot be read"),
        pytest.param("[" * 100_000, "its config.json cannot be read: it is nested too deep", id="nested deep"),
        ("[]", "its config.json must hold a mapping"),
        ({**GOOD, "num_attention_heads": "8"}, "num_attention_heads = '8': must be a positive integer"),
        ({**GOOD, "vocab_size": 0}, "vocab_size = 0: must be a positive integer"),
        ({**GOOD, "max_position_embeddings": True}, "max_position_embeddings = True"),
        ({**GOOD, "rope_scaling": {"type": "yarn", "factor": "4"}}, "has factor = '4' of its rotary scaling"),
        ({**GOOD, "rope_scaling": ["yarn"]}, "has rope_scaling = ['yarn']: must be a mapping"),
        ({"text_config": "none"}, "num_attention_heads = None"),
        ({**GOOD, "quantization_config": {"quant_method": "fp8"}}, "the checkpoint is quantised (fp8)"),
        ({**GOOD, "layer_types": 2}, "layer_types = 2 is no list of a type for each layer"),
        (None, "the folder has no config.json"),
    ],
)
def test_a_config_json_that_will_not_do(check, tmp_path, data, text):
    with pytest.raises(ConfigError) as caught:
        check(data)
    assert (caught.value.key, caught.value.value) == ("model.path", str(tmp_path))
    assert text in str(caught.value)


def test_missing_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    config = LaunchConfig.from_dict({"model": {"path": str(tmp_path)}})
    with pytest.raises(
        ConfigError, match=r": holds neither model.safetensors nor .*; model.load_format=dummy needs none"
    ):
        check_model(config)
    assert check_model(config.replace({"model.load_format": "dummy"}))


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all"])
def test_missing_folder(path):
    with pytest.raises(ConfigError) as caught:
        check_model(LaunchConfig.from_dict({"model": {"path": path}}))
    absolute = str(Path(path).expanduser().absolute())
    assert str(caught.value).startswith(f"model.path = {absolute!r}: no such folder")


def test_folders_that_cannot_be_looked_into():
    path = "/" + "x" * 300
    with pytest.raises(ConfigError, match=r"model\.path = .*: cannot be looked into: File name too long"):
        check_model(LaunchConfig.from_dict({"model": {"path": path}}))
    with pytest.raises(ConfigError, match=r"model\.tokenizer = .*: no such folder"):
        check_model(LaunchConfig.default().replace({"model.tokenizer": path}))
    assert check_model(LaunchConfig.default().replace({"model.tokenizer": path[1:]}))  # a name: the Hub says so


def test_a_name_that_is_neither_folder_nor_hub_name():
    with pytest.raises(ConfigError, match="neither a folder nor a Hub name such as Qwen/Qwen3-8B"):
        check_model(LaunchConfig.from_dict({"model": {"path": "a/b/c"}}))


def test_a_mistyped_folder_does_not_wait_for_a_hub_that_is_not_there(monkeypatch):
    template = "http://127.0.0.1:1/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("tries for half a minute"))
    with pytest.raises(ConfigError, match=r"no such folder here, and the Hub does not give it: .*refused"):
        check_model(LaunchConfig.from_dict({"model": {"path": "models/nowhere"}}))


def test_the_shipped_model():
    assert check_model(LaunchConfig.default()).vocab_size == 16


@pytest.mark.parametrize("key", ["model.path", "model.tokenizer"])
def test_a_tokenizer_of_a_newer_format(check, tmp_path, key):
    """``tokenizers`` raises a plain ``Exception`` for it, and transformers would only after its import."""
    folder = tmp_path if key == "model.path" else tmp_path / "of-its-own"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Newer"}}')
    with pytest.raises(ConfigError) as caught:
        check(GOOD, f"{key}={folder}")
    assert (caught.value.key, caught.value.value) == (key, str(folder))
    assert "its tokenizer cannot be loaded: tokenizer.json: data did not match" in str(caught.value)
    with pytest.raises(ConfigError, match="its tokenizer cannot be loaded: "):
        load_tokenizer(LaunchConfig.from_dict({"model": {"path": str(tmp_path)}}).replace({key: str(folder)}))
