"""How a model wants tokens to be chosen, and what becomes of it where a request says something else, or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from raylaunch.config import LaunchConfig
from raylaunch.engine import Engine
from raylaunch.errors import ConfigError, RequestError
from raylaunch.frontends.generation_config import OF_BOTH, OF_SGLANG, SamplingDefaults, read, sampling_defaults
from raylaunch.frontends.requests import RunningRequest
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.model_check import check_model
from raylaunch.report import LaunchReport
from raylaunch.resolved import launch_of
from raylaunch.serve.reference.generate_schema import SglangSampling
from raylaunch.serve.reference.openai_schema import CompletionRequest

QWEN = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05, "min_p": 0.0}


@pytest.mark.parametrize(
    ("data", "values", "unused"),
    [
        ({}, {}, ()),
        ({"temperature": None, "bos_token_id": 1, "min_p": 0.0, "repetition_penalty": 1.0}, {}, ()),
        (QWEN, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}, ("repetition_penalty = 1.05",)),
        ({"top_k": -1, "top_p": 1}, {"top_k": 0, "top_p": 1.0}, ()),
        ({"temperature": 0.6}, {"temperature": 0.6}, ()),
        ({"do_sample": False}, {"temperature": 0.0}, ()),
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6}, {"temperature": 0.0}, ()),
        ({"min_p": 0.1, "no_repeat_ngram_size": 3}, {}, ("min_p = 0.1", "no_repeat_ngram_size = 3")),
        ({"max_new_tokens": 2048}, {}, ("max_new_tokens = 2048",)),
    ],
)
def test_what_the_file_says(data, values, unused):
    found = read(data, OF_BOTH)
    assert (dict(found.values), found.unused) == (values, unused)


def test_sglang_knows_more():
    assert read(QWEN, (*OF_BOTH, *OF_SGLANG)).values["repetition_penalty"] == 1.05
    assert read({"do_sample": False, "repetition_penalty": 2}, (*OF_BOTH, *OF_SGLANG)).values == {
        "temperature": 0.0,
        "repetition_penalty": 2,
    }


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"temperature": "hot"}, "temperature = 'hot'"),
        ({"top_p": 0}, "top_p = 0"),
        ({"top_k": -5}, "top_k = -5"),
        ({"temperature": True, "repetition_penalty": "x"}, "repetition_penalty = 'x'"),
    ],
)
def test_what_is_impossible_is_named(data, text):
    with pytest.raises(RequestError, match=text):
        read(data, (*OF_BOTH, *OF_SGLANG))


def config_of(tmp_path: Path, text: str | None, *settings: str) -> LaunchConfig:
    """The shipped model with this generation_config.json."""
    folder = tmp_path / "model"
    shutil.copytree(LaunchConfig.default().model.path, folder, dirs_exist_ok=True)
    (folder / "generation_config.json").unlink()
    if text is not None:
        (folder / "generation_config.json").write_text(text)
    return LaunchConfig.default([f"model.path={folder}", *settings])


def test_the_models_file_is_read_unless_it_is_not_wanted(tmp_path):
    config = config_of(tmp_path, json.dumps(QWEN))
    assert sampling_defaults(config).values == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    assert str(sampling_defaults(config)) == (
        "temperature 0.6, top_k 20, top_p 0.95 (generation_config.json; not used of it: repetition_penalty = 1.05)"
    )
    other = config.replace({"engine.sampling_defaults": "openai"})
    assert sampling_defaults(other).values == {}
    assert str(sampling_defaults(other)) == (
        "greedy in Python, temperature 1 over HTTP (engine.sampling_defaults is openai)"
    )


def test_a_model_without_a_file(tmp_path):
    assert "has no generation_config.json" in str(sampling_defaults(config_of(tmp_path, None)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        pytest.param("[" * 100_000, "cannot be read: it is nested too deep", id="nested deep"),
        ("[]", "must hold a mapping"),
        ('{"top_p": 7}', r"has top_p = 7: .*sampling_defaults"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        sampling_defaults(config_of(tmp_path, text))


def test_the_shipped_model_is_greedy():
    found = sampling_defaults(LaunchConfig.default())
    assert found.values == {"temperature": 0.0}
    assert str(found).startswith("greedy (generation_config.json: do_sample is false")


def test_with_sglang_its_own_arguments_go_first(tmp_path):
    sglang = {"engine": {"kind": "sglang"}, "model": {"path": str(tmp_path)}}
    (tmp_path / "generation_config.json").write_text(json.dumps(QWEN))
    config = LaunchConfig.from_dict(sglang)
    assert sampling_defaults(config).values["repetition_penalty"] == 1.05
    sglang["engine"]["sglang"] = {"args": {"preferred_sampling_params": '{"temperature": 0.3}'}}
    assert "temperature" not in sampling_defaults(LaunchConfig.from_dict(sglang)).values
    sglang["engine"]["sglang"] = {"args": {"sampling_defaults": "openai"}}
    assert sampling_defaults(LaunchConfig.from_dict(sglang)).values == {}


DEFAULTS = {"temperature": 0.6, "top_k": 20}


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({}, (0.6, 20, 1.0)),
        ({"temperature": 0}, (0.0, 20, 1.0)),
        ({"temperature": 1.0, "top_k": 0}, (1.0, 0, 1.0)),
        ({"top_p": 0.5}, (0.6, 20, 0.5)),
    ],
)
def test_in_python_the_models_values_hold_where_nothing_is_said(given, values):
    params = SamplingParams(**given).filled(DEFAULTS)
    assert (params.temperature, params.top_k, params.top_p) == values
    assert SamplingParams(**given).filled({}) == SamplingParams(**given)


def test_parameters_of_the_engines_own_go_into_extra():
    params = SamplingParams(extra={"min_p": 0.2}).filled({"min_p": 0.1, "repetition_penalty": 1.05})
    assert params.extra == {"min_p": 0.2, "repetition_penalty": 1.05}


@pytest.mark.parametrize("request_type", [lambda **said: CompletionRequest(prompt="a", **said), SglangSampling])
@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({}, (0.6, 20, 1.0)),
        ({"temperature": 0.0}, (0.0, 20, 1.0)),
        ({"temperature": 1.0, "top_p": 0.9, "top_k": -1}, (1.0, 0, 0.9)),
    ],
)
def test_over_http_too(request_type, given, values):
    asked = request_type(**given)
    new_tokens = {} if isinstance(asked, SglangSampling) else {"new_tokens": 1}
    params = asked.params(**new_tokens, logprobs=None, choice=0, defaults=DEFAULTS)
    assert (params.temperature, params.top_k, params.top_p) == values
    if not given:
        params = asked.params(**new_tokens, logprobs=None, choice=0, defaults={})
        assert (params.temperature, params.top_k, params.top_p) == (1.0, 0, 1.0)


def test_every_way_into_the_engine_fills_them_in():
    config = LaunchConfig.default()
    engine = Engine(config)
    engine._sampling = SamplingDefaults(DEFAULTS)
    engine.frontend._resolved = launch_of(config, check_model(config))
    seen = []

    def submit(prepared, listener, request_id):
        seen.append(prepared.params)
        return RunningRequest(request_id, prepared.ids, prepared.params, None, listener)

    engine.submit = submit
    engine._start([1], SamplingParams(), ())(print)
    engine._start([1], SamplingParams(temperature=0.0), ())(print)
    assert [(one.temperature, one.top_k) for one in seen] == [(0.6, 20), (0.0, 20)]


def test_the_report_says_it():
    report = LaunchReport("x", sampling="temperature 0.6 (generation_config.json)")
    row = report.table().splitlines()[-1]
    assert row.split(maxsplit=1) == ["SERVE", f"unless a request says otherwise: {report.sampling}"]
    assert report.to_dict()["sampling"] == report.sampling
