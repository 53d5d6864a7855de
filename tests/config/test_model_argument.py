"""What the first argument of a command names, and with which engine a model alone is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylaunch.config import LaunchConfig, shipped_configs
from raylaunch.config.model_argument import choose_engine, find_model, kind_of, launch_name
from raylaunch.errors import ConfigError
from raylaunch.terminal.configuration import configuration_of

SHIPPED = ["tiny-cpu", "tiny-two-nodes", "qwen3-8b-tp2", "qwen3-8b-tp4"]
ADDER = str(shipped_configs() / "models" / "tiny-adder")


@pytest.mark.parametrize(
    ("text", "there", "kind"),
    [
        ("my.yaml", "file", "file"),
        ("qwen3-8b-tp2", "file", "file"),  # what is there comes first
        ("tiny-cpu", "folder", "folder"),
        ("Qwen/Qwen3-8B", "folder", "folder"),
        ("~/m", "folder", "folder"),
        ("tiny-cpu", "", "shipped"),
        ("tiny-cpu.yaml", "", "shipped"),
        ("configs/tiny-cpu.yaml", "", "shipped"),
        ("configs/qwen3-8b-tp2", "", "shipped"),
        ("Qwen/Qwen3-8B", "", "hub"),
        ("meta-llama/Llama-3.1-8B", "", "hub"),
        ("gpt2", "", "hub"),
    ],
)
def test_what_is_one_of_them(text, there, kind):
    assert kind_of(text, there, SHIPPED, ()) == kind


@pytest.mark.parametrize(
    ("text", "there", "said"),
    [
        ("./m", "", "no such file or folder; configurations that ship: qwen3-8b-tp2, .*tiny-cpu"),
        ("./my-modle", "", r"no such file or folder; did you mean my-model\?"),
        ("m/", "", "no such file or folder"),
        ("/a/b/c", "", "no such file or folder"),
        ("a/b/c", "", "no such file or folder"),
        ("~/m", "", "no such file or folder"),
        ("other/tiny-cpu.yaml", "", r"no such file or folder; did you mean tiny-cpu\?"),
        ("tiny-cup", "", r"is no file, folder or configuration that ships; did you mean tiny-cpu\?"),
        ("qwen3-8b", "", r"did you mean qwen3-8b-tp2 or qwen3-8b-tp4\?"),
        ("my model", "", "is no file, folder or Hub name such as Qwen/Qwen3-8B"),
        ("", "", "is no file, folder or Hub name"),
        ("https://huggingface.co/Qwen/Qwen3-8B/tree/main", "", "is a page: give the name alone, Qwen/Qwen3-8B"),
        ("m/model.safetensors", "file", "is a file of a model: give its folder"),
        ("m/config.json", "file", "is a file of a model: give its folder"),
    ],
)
def test_what_is_none_of_them(text, there, said):
    with pytest.raises(ConfigError, match=said) as error:
        kind_of(text, there, SHIPPED, ["my-model", "other"])
    assert error.value.key == "MODEL"


def test_a_shipped_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model("tiny-cpu") == ("shipped", str(shipped_configs() / "tiny-cpu.yaml"))
    (tmp_path / "tiny-cpu").mkdir()
    assert find_model("tiny-cpu") == ("folder", str(tmp_path / "tiny-cpu"))
    assert configuration_of(None, [], ())[0] == LaunchConfig.default()  # whatever lies here
    with pytest.raises(ConfigError, match="no such file or folder"):
        find_model("./" + "x" * 5000)


def test_an_empty_argument_names_nothing():
    with pytest.raises(ConfigError, match="MODEL = '': is empty: give a model or a configuration, or leave it out"):
        find_model("")


@pytest.mark.parametrize(
    ("setting", "key"),
    [("engine=5", "engine"), ("engine=[1]", "engine"), ("engine.sglang=5", "engine.sglang")],
)
@pytest.mark.parametrize("model", [None, ADDER])
def test_an_engine_that_is_no_section(model, setting, key, monkeypatch):
    monkeypatch.setattr("raylaunch.terminal.configuration.arguments_of", lambda words: {"page_size": 16})
    with pytest.raises(ConfigError, match="must be a mapping of settings") as caught:
        configuration_of(model, [setting], ())
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("path", "name"),
    [("Qwen/Qwen3-8B", "qwen3-8b"), ("/models/My Model!/", "my-model-"), ("/m/__x", "x"), ("/m/...", "model")],
)
def test_a_launch_is_named_after_its_model(path, name):
    assert launch_name(path) == name
    LaunchConfig.from_dict({"name": name, "model": {"path": "x/y"}})


HERE = {"sglang": "1.0", "tested": ["1.0"], "gpus": 2, "device": "auto", "args": {}}


@pytest.mark.parametrize(
    ("changed", "engine", "why"),
    [
        ({}, "sglang", "SGLang 1.0 is installed, and there are 2 GPUs"),
        ({"gpus": 1}, "sglang", "there is 1 GPU"),
        ({"device": "cuda"}, "sglang", "installed"),
        ({"gpus": 0}, "reference", "no GPU"),
        ({"sglang": "absent"}, "reference", "not installed"),
        ({"sglang": "0.9"}, "reference", "0.9 is installed, which raylaunch was never run with"),
        ({"device": "cpu"}, "reference", "CPUs"),
        ({"gpus": 0, "args": {"attention_backend": "fa3"}}, "sglang", "arguments of SGLang's"),
    ],
)
def test_the_engine_of_a_model_alone(changed, engine, why):
    found, because = choose_engine(**{**HERE, **changed})
    assert found == engine
    assert why in because


def test_options_become_settings_and_set_comes_last(monkeypatch):
    config, chosen = configuration_of(ADDER, ["parallel.tensor_parallel_size=2", "engine.kind=reference"], ())
    assert chosen == f"model {ADDER}, a folder; engine reference"
    assert (config.name, config.parallel.tensor_parallel_size) == ("tiny-adder", 2)
    config, chosen = configuration_of(ADDER, ["engine=reference"], ())
    assert config.engine.kind == "reference"
    config, chosen = configuration_of("tiny-cpu", ["parallel.tensor_parallel_size=4"], ())
    assert chosen == ""
    assert config == LaunchConfig.default(["parallel.tensor_parallel_size=4"])


def test_a_model_of_few_positions_is_captured_up_to_them(tmp_path: Path):
    text = (Path(ADDER) / "config.json").read_text().replace('"max_position_embeddings": 2048', '"n_positions": 100')
    (tmp_path / "config.json").write_text(text)
    assert configuration_of(str(tmp_path), ["engine=reference"], ())[0].capture.prefill_tokens == (32, 100)
    kept = configuration_of(str(tmp_path), ["engine=reference", "capture.prefill_tokens=[8]"], ())[0]
    assert kept.capture.prefill_tokens == (8,)
    assert "prefill_tokens" not in configuration_of(ADDER, ["engine=reference"], ())[0].capture.model_fields_set
