"""How long a model's context is, told from its ``config.json``."""

from __future__ import annotations

import re

import pytest

from raylaunch.config import LaunchConfig
from raylaunch.config.context import longest_context
from raylaunch.errors import ConfigError
from raylaunch.model.shape import overridden_by_sglang, shape_of, with_context
from raylaunch.model_check import check_context

P = {"max_position_embeddings": 1000}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (P, 1000),
        ({**P, "rope_scaling": None, "rope_parameters": {}}, 1000),
        ({**P, "rope_scaling": YARN}, 4000),
        ({**P, "rope_scaling": {"rope_type": "yarn", "factor": 4}}, 4000),
        ({**P, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, 4000),
        ({**P, "rope_scaling": YARN, "rope_parameters": {"rope_type": "default"}}, 4000),
        # Qwen3 names 40,960 positions, of which 32,768 are the original ones.
        ({"max_position_embeddings": 1250, "rope_scaling": YARN}, 4000),
        # DeepSeek and gpt-oss name those after scaling.
        ({"max_position_embeddings": 4000, "rope_scaling": YARN}, 4000),
        ({"max_position_embeddings": 6000, "rope_scaling": YARN}, 6000),
        ({"max_position_embeddings": 4000, "rope_scaling": {**YARN, "factor": None}}, 4000),
        ({**P, "original_max_position_embeddings": 500, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 2000),
        ({**P, "rope_scaling": {"type": "linear", "factor": 2.5}}, 2500),
        ({**P, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 2000),
        ({**P, "rope_scaling": {"type": "linear", "factor": 0.5}}, 1000),
        # The positions are those after scaling.
        ({**P, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 500}}, 1000),
        ({**P, "rope_scaling": {"type": "longrope", "factor": 32.0, "short_factor": [], "long_factor": []}}, 1000),
        ({**P, "rope_scaling": {"type": "su", "original_max_position_embeddings": 100}}, 1000),
        ({**P, "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]}}, 1000),
        ({**P, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, 1000),
        ({**P, "rope_scaling": {**YARN, "mrope_section": [16, 24, 24]}}, 4000),
        ({**P, "rope_scaling": {"rope_type": "default", "factor": "no number"}}, 1000),
        # By type of layer: Gemma 3's positions are scaled already, and so are Olmo 3's.
        ({**P, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding": {}}}, 1000),
        ({**P, "rope_parameters": {"full_attention": {**YARN, "rope_type": "yarn"}, "sliding_attention": None}}, 4000),
        # Other names; the least counts.
        ({"n_positions": 512}, 512),
        ({**P, "model_max_length": 800}, 800),
        ({**P, "model_max_length": 8000, "sliding_window": 100}, 1000),
        ({**P, "model_max_length": 1e30}, 1000),
    ],
)  # fmt: skip
def test_longest_context(text, tokens):
    assert longest_context(text) == tokens


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({}, "max_position_embeddings = None: must be a positive integer"),
        ({"max_position_embeddings": "1000"}, "max_position_embeddings = '1000'"),
        ({"max_position_embeddings": 0, "n_positions": 10}, "max_position_embeddings = 0"),
        ({**P, "rope_scaling": "yarn"}, "rope_scaling = 'yarn': must be a mapping"),
        ({**P, "rope_scaling": {"type": 4}}, "rope_type = 4: must be a name, such as yarn"),
        ({**P, "rope_scaling": {"type": "linear"}}, "factor = None of its rotary scaling: must be a number above 0"),
        ({**P, "rope_scaling": {"type": "yarn"}}, "factor = None"),
        ({**P, "rope_scaling": {"type": "yarn", "factor": "4.0"}}, "factor = '4.0'"),
        ({**P, "rope_scaling": {"type": "yarn", "factor": 0}}, "factor = 0"),
        ({**P, "rope_scaling": {"type": "yarn", "factor": -2}}, "factor = -2"),
        ({**P, "rope_scaling": {"type": "yarn", "factor": True}}, "factor = True"),
        ({**P, "rope_scaling": {"type": "dynamic", "factor": float("nan")}}, "factor = nan"),
        ({**P, "rope_scaling": {"type": "linear", "factor": float("inf")}}, "factor = inf"),
        ({**P, "rope_scaling": {"type": "linear", "factor": 1e308}}, "is no context"),
        ({**P, "rope_scaling": {**YARN, "original_max_position_embeddings": "1k"}}, "embeddings = '1k'"),
    ],
)  # fmt: skip
def test_configurations_that_say_no_context(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        longest_context(text)


def shape(**text):
    return shape_of({"num_attention_heads": 8, "vocab_size": 10, **text}, "model")


def test_a_vision_language_model_has_it_under_text_config():
    outer = {"num_attention_heads": 8, "vocab_size": 10, "rope_scaling": {"type": "linear", "factor": 9.0}}
    assert shape_of({**outer, "text_config": {**P, "rope_scaling": YARN}}, "m").max_positions == 4000
    assert shape_of({**outer, "text_config": P}, "m").max_positions == 1000
    assert shape_of({**outer, **P, "text_config": {"rope_scaling": YARN}}, "m").max_positions == 4000


def config(*overrides, kind="sglang"):
    return LaunchConfig.from_dict({"model": {"path": "m"}, "engine": {"kind": kind}}).override(*overrides)


@pytest.mark.parametrize("key", ["engine.max_context", "engine.sglang.args.context_length"])
def test_a_context_beyond_the_longest_is_refused(key):
    scaled = shape(**P, rope_scaling=YARN)
    check_context(config(f"{key}=4000"), scaled)
    with pytest.raises(ConfigError, match=f"^{key} = 4001: is beyond the longest context: 4000, 1000 positions with"):
        check_context(config(f"{key}=4001"), scaled)
    with pytest.raises(ConfigError, match=r"1001: is beyond .* rotary scaling in its config.json would allow more"):
        check_context(config(f"{key}=1001"), shape(**P))


def test_sglang_is_told_the_context_that_it_would_derive_otherwise():
    plain, scaled = shape(**P), shape(**P, rope_scaling=YARN)
    assert with_context(config(), scaled).engine.max_context == 4000
    assert with_context(config("engine.max_context=2000"), scaled).engine.max_context == 2000
    own = config("engine.sglang.args.context_length=500")
    for unchanged, of in ((config(), plain), (config(kind="reference"), scaled), (own, scaled)):
        assert with_context(unchanged, of) is unchanged


def test_what_sglang_is_told_to_take_instead_counts():
    name = "engine.sglang.args.json_model_override_args"
    assert overridden_by_sglang(config()) == {}
    given = """{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}"""
    assert shape(**P, **overridden_by_sglang(config(f"{name}='{given}'"))).max_positions == 4000
    for text in ("'{'", "'[]'", "{a: 1}"):
        with pytest.raises(ConfigError, match=name):
            overridden_by_sglang(config(f"{name}={text}"))
