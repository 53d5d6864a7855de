"""A printed configuration starts the same launch, and shows no secret; the schema takes what ships."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from raylaunch.config import LaunchConfig, shipped_configs
from raylaunch.config.printed import as_schema, as_yaml

MODEL = {"model": {"path": "Qwen/Qwen3-8B"}}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["name=123", "model.revision=0123", "model.path=a/b", "environment.X=yes", "environment.Y="],
        ["engine=sglang", "engine.sglang.args.attention_backend=fa3", "engine.sglang.args.lora_paths=[a=/x, b=/y]"],
        ["engine.kind=sglang", "engine.kv_tokens=auto"],  # set, and at its default
        ["deadlines.register=7", "serve.cors_origins=[]", "capture.prefill_tokens=[8]", "restarts=0"],
        ["faults=[{action: raise, at: load}, {action: kill, rank: 1}]", "placement.resources_per_rank={GPU: 0.5}"],
        ["serve.chat_template='{{ a }}\n# b'", "environment={}"],
        ['environment.X="a\\Nb\\Lc\\Pd"', 'engine.sglang.args.a=["\\L"]', "engine=sglang"],
    ],
)
def test_a_printed_configuration_is_the_same(overrides, tmp_path):
    config = LaunchConfig.from_dict(MODEL).override(*overrides)
    file = tmp_path / "config.yaml"
    file.write_text(as_yaml(config))
    again = LaunchConfig.from_yaml(file)
    assert again == config
    assert again.model_dump(exclude_unset=True) == config.model_dump(exclude_unset=True)


@pytest.mark.parametrize("name", sorted(file.stem for file in shipped_configs().glob("*.yaml")))
def test_what_ships_is_printed_the_same_and_fits_the_schema(name, tmp_path):
    config = LaunchConfig.from_yaml(name)
    file = tmp_path / "config.yaml"
    file.write_text(as_yaml(config))
    assert LaunchConfig.from_yaml(file).model_dump(exclude_unset=True) == config.model_dump(exclude_unset=True)
    jsonschema.validate(yaml.safe_load(file.read_text()), json.loads(as_schema()))


def test_every_setting_is_there():
    text = as_yaml(LaunchConfig.from_dict(MODEL))
    uncommented = "\n".join(line.replace("# ", "", 1) for line in text.splitlines())
    everything = LaunchConfig.from_dict(MODEL).model_dump(mode="json", by_alias=True)
    assert LaunchConfig.from_dict(yaml.safe_load(uncommented)) == LaunchConfig.from_dict(everything)


def test_no_secret_is_printed():
    secrets = {
        "environment": {"HF_TOKEN": "geheim", "PLAIN": "1", "PROXY": "http://me:geheim@host"},
        "serve": {"api_key": "geheim"},
        "engine": {"kind": "sglang", "sglang": {"args": {"api_key": "geheim", "watchdog_timeout": 3}}},
    }
    text = as_yaml(LaunchConfig.from_dict({**MODEL, **secrets}))
    assert "geheim" not in text
    for key in ("environment.HF_TOKEN", "environment.PROXY", "api_key", "args.api_key"):
        assert f"# {key}: a secret that is not shown" in text
    assert yaml.safe_load(text)["environment"] == {"PLAIN": "1"}
    assert yaml.safe_load(text)["engine"]["sglang"]["args"] == {"watchdog_timeout": 3}


@pytest.mark.parametrize(
    ("data", "fits"),
    [
        ({**MODEL, "engine": "sglang", "communicator": "auto"}, True),
        ({**MODEL, "engine": {"kind": "reference"}, "deadlines": {"register": 3}}, True),
        ({**MODEL, "engine": "vllm"}, False),
        ({**MODEL, "restart": 1}, False),
        ({}, False),
    ],
)
def test_the_schema_takes_what_a_file_may_hold(data, fits):
    schema = json.loads(as_schema())
    assert jsonschema.Draft202012Validator(schema).is_valid(data) == fits
    assert "barriers inside CAPTURE" in schema["$defs"]["CaptureConfig"]["properties"]["granularity"]["description"]
