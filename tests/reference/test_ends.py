"""Which tokens end an answer."""

from __future__ import annotations

import json

import pytest
from raylaunch_actors.reference.build import eos_token_ids
from transformers import Qwen2_5_VLConfig, Qwen3Config


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        (None, None, set()),
        (2, None, {2}),
        ([2, 3], None, {2, 3}),
        (2, 5, {2, 5}),
        (2, [5, 6], {2, 5, 6}),
        (2, [], {2}),
        (0, None, {0}),
        (None, 5, {5}),
        (2, "</s>", {2}),
        (2, [5, "x", None, 6.0, True, [7]], {2, 5}),
    ],
)
def test_ends_are_those_of_both_files(tmp_path, config, generation, ends):
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert eos_token_ids(tmp_path, Qwen3Config(eos_token_id=config)) == ends


def test_a_text_model_inside_has_its_own(tmp_path):
    config = Qwen2_5_VLConfig(text_config={"eos_token_id": 7}, eos_token_id=8)
    assert {7, 8} >= eos_token_ids(tmp_path, config) >= {7}


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "\xff", "[" * 100_000])
def test_a_file_that_is_none_names_no_ends(tmp_path, caplog, text):
    """The driver refuses it, unless it was told to leave the file unread."""
    (tmp_path / "generation_config.json").write_text(text, encoding="latin-1")
    assert eos_token_ids(tmp_path, Qwen3Config(eos_token_id=2)) == {2}
    assert "generation_config.json holds no mapping" in caplog.text


@pytest.mark.parametrize("setting", [{"cache_implementation": "zzz"}, {"max_new_tokens": -5}, {"temperature": -1}])
def test_nothing_else_of_the_file_counts(tmp_path, setting):
    (tmp_path / "generation_config.json").write_text(json.dumps({**setting, "eos_token_id": 5}))
    assert eos_token_ids(tmp_path, Qwen3Config(eos_token_id=2)) == {2, 5}
