"""What a caller may ask of a request, and what is refused with a message."""

from __future__ import annotations

import pytest

from raylaunch import wire
from raylaunch.config import LaunchConfig
from raylaunch.errors import RequestError
from raylaunch.frontends.reference import ReferenceFrontend
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.model_check import check_model
from raylaunch.resolved import launch_of


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens = -1: input should be greater than or equal to 0"),
        ({"prompt_logprobs": 21}, "prompt_logprobs = 21: "),
        ({"logit_bias": {-1: 1.0}}, "logit_bias.-1"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias.3 = nan: "),
        ({"logit_bias": {3: 1e31}}, "logit_bias.3 = 1e+31: "),
        ({"max_new_tokens": 1.5}, "max_new_tokens = 1.5: input should be a valid integer"),
        ({"temperature": -0.1}, "temperature = -0.1: input should be greater than or equal to 0"),
        ({"temperature": float("nan")}, "temperature = nan: "),
        ({"temperature": float("inf")}, "temperature = inf: "),
        ({"top_p": 0}, "top_p = 0: input should be greater than 0"),
        ({"top_p": 1.1}, "top_p = 1.1: input should be less than or equal to 1"),
        ({"top_p": float("nan")}, "top_p = nan: "),
        ({"top_k": -1}, "top_k = -1: "),
        ({"top_k": 1 << 80}, "top_k = 1208925819614629174706176: "),
        ({"seed": -1}, "seed = -1: "),
        ({"seed": 1 << 63}, "seed = 9223372036854775808: "),
        ({"stop": ""}, "stop.0 = '': string should have at least 1 character"),
        ({"stop": ["a", 3]}, "stop.1 = 3: input should be a valid string"),
        ({"stop_token_ids": [2, -1]}, "stop_token_ids.1 = -1: "),
        ({"stop_token_ids": [True]}, "stop_token_ids.0 = True: "),
        ({"stop_token_ids": [1 << 80]}, "stop_token_ids.0 = 1208925819614629174706176: "),
        ({"ignore_eos": "perhaps"}, "ignore_eos = 'perhaps': input should be a valid boolean"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(changes, text):
    with pytest.raises(RequestError) as caught:
        SamplingParams.of(None, changes)
    assert str(caught.value).startswith(text)


def test_an_unknown_parameter_brings_a_hint_and_the_known_ones():
    with pytest.raises(RequestError) as caught:
        SamplingParams.of(None, {"temprature": 1})
    assert str(caught.value).startswith(
        "unknown sampling parameter 'temprature'; did you mean 'temperature'? known: max_new_tokens, temperature"
    )


@pytest.mark.parametrize(("stop", "stops"), [("x", ("x",)), (["x", "y"], ("x", "y")), (None, ()), ((), ())])
def test_stop_is_one_string_or_many(stop, stops):
    assert SamplingParams(stop=stop).stop == stops


def test_changes_are_made_to_a_copy():
    params = SamplingParams(temperature=0.5, seed=7)
    assert SamplingParams.of(params, {}) is params
    changed = SamplingParams.of(params, {"top_k": 3})
    assert (changed.temperature, changed.seed, changed.top_k, params.top_k) == (0.5, 7, 3, 0)
    assert SamplingParams.of(None, {}) == SamplingParams()


def test_ranks_are_told_all_but_the_stop_strings():
    params = SamplingParams(
        max_new_tokens=3, temperature=0.5, top_k=4, top_p=0.9, seed=5, stop="x", stop_token_ids=(1, 2), ignore_eos=True,
        prompt_logprobs=2, logit_bias={3: 1.5},
    )  # fmt: skip
    on_wire = params.on_wire()
    assert set(SamplingParams.model_fields) - set(wire.Sampling.__struct_fields__) == {"stop", "extra"}
    assert on_wire.logit_bias == [(3, 1.5)]
    assert (on_wire.drawn, params.on_wire(given=4).drawn) == (0, 4)
    for name in set(wire.Sampling.__struct_fields__) - {"logit_bias", "drawn"}:
        value = getattr(params, name)
        assert getattr(on_wire, name) == (list(value) if isinstance(value, tuple) else value)


def test_the_tokenizers_ends_are_sent_unless_ends_are_ignored():
    assert SamplingParams(stop_token_ids=(7,)).on_wire((2, 3)).stop_token_ids == [7, 2, 3]
    assert SamplingParams(stop_token_ids=(7,), ignore_eos=True).on_wire((2, 3)).stop_token_ids == [7]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("min_p", "the reference engine has no sampling parameter 'min_p'"),
        ("top_p", "'top_p' is a parameter of its own"),
    ],
)
def test_the_reference_engine_knows_no_further_parameters(name, text):
    config = LaunchConfig.default()
    frontend = ReferenceFrontend(config)
    frontend._resolved = launch_of(config, check_model(config))
    with pytest.raises(RequestError, match=text):
        frontend.prepare([1], SamplingParams(extra={name: 0.1}))


def test_parameters_of_another_kind():
    with pytest.raises(RequestError, match="params is a dict: give SamplingParams"):
        SamplingParams.of({"temperature": 1}, {})  # type: ignore[arg-type]


def test_the_largest_values_fit_the_wire():
    most = (1 << 31) - 1
    params = SamplingParams(max_new_tokens=most, top_k=most, seed=(1 << 63) - 1, stop_token_ids=(most,))
    submit = wire.Submit("r", [0], params.on_wire())
    assert wire.decode_to_rank(wire.encode(submit)) == submit
