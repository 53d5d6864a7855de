"""A tokenizer that the driver's node lacks is missed before a launch."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from raylaunch.config import LaunchConfig, shipped_configs
from raylaunch.errors import ConfigError
from raylaunch.model.tokenizer import check_tokenizer, load_tokenizer

MODEL = shipped_configs() / "models" / "tiny-adder"


@pytest.mark.parametrize(
    ("files", "settings", "missed"),
    [
        (("config.json",), (), True),
        (("config.json", "tokenizer.json", "tokenizer_config.json"), (), False),  # a driver needs no more
        (("config.json",), ("model.load_format=dummy",), False),
        (("config.json", "tekken.json"), (), False),
        (("config.json", "model.safetensors"), (), False),  # a model without one: prompts are ids
    ],
)
def test_a_copy_without_weights_needs_a_tokenizer(
    files: tuple[str, ...], settings: tuple[str, ...], missed: bool, tmp_path: Path
) -> None:
    for file in files:
        if file == "tekken.json":
            (tmp_path / file).touch()
        else:
            shutil.copy(MODEL / file, tmp_path)
    model = LaunchConfig.default([f"model.path={tmp_path}", *settings]).model
    if not missed:
        check_tokenizer(model)
        return
    with pytest.raises(
        ConfigError, match=r"has no tokenizer on the driver's node, .*: it needs one of tokenizer\.json"
    ):
        check_tokenizer(model)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (None, "has no tokenizer: prompts are token ids"),
        ("tekken.json", ": prompts are token ids: it has none of .*; tekken.json the engine 'reference' does not read"),
        ("tokenizer.json", None),
    ],
)
def test_a_model_whose_prompts_are_token_ids_is_said_to_be_one(
    file: str | None, said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for one in ("config.json", "model.safetensors", *([file] if file == "tokenizer.json" else [])):
        shutil.copy(MODEL / one, tmp_path)
    if file == "tekken.json":
        (tmp_path / file).write_text("{}")
    config = LaunchConfig.default([f"model.path={tmp_path}"])
    check_tokenizer(config.model)
    tokenizer = load_tokenizer(config)
    assert (tokenizer is None) == (said is not None)
    assert len(caplog.records) == (said is not None)
    assert re.search(said or "", caplog.text)


def test_a_tokenizer_that_is_asked_for_and_not_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"model\.tokenizer = .*: it has none of .*; tekken\.json the engine 'reference'"
    ):
        load_tokenizer(LaunchConfig.default([f"model.tokenizer={tmp_path}"]))
    (tmp_path / "tekken.json").unlink()
    with pytest.raises(ConfigError, match=r"model\.tokenizer = .*: has none of"):
        check_tokenizer(LaunchConfig.default([f"model.tokenizer={tmp_path}"]).model)
