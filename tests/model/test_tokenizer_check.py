"""A tokenizer that the driver's node lacks is missed before a launch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raylaunch.config import LaunchConfig, shipped_configs
from raylaunch.errors import ConfigError
from raylaunch.model.tokenizer import check_tokenizer

MODEL = shipped_configs() / "models" / "tiny-adder"


@pytest.mark.parametrize(
    ("files", "settings", "missed"),
    [
        (("config.json",), (), True),
        (("config.json", "tokenizer.json", "tokenizer_config.json"), (), False),  # a driver needs no more
        (("config.json",), ("model.load_format=dummy",), False),
        (("config.json", "model.safetensors"), (), False),  # a model without one: prompts are ids
    ],
)
def test_a_copy_without_weights_needs_a_tokenizer(
    files: tuple[str, ...], settings: tuple[str, ...], missed: bool, tmp_path: Path
) -> None:
    for file in files:
        shutil.copy(MODEL / file, tmp_path)
    model = LaunchConfig.default([f"model.path={tmp_path}", *settings]).model
    if not missed:
        check_tokenizer(model)
        return
    with pytest.raises(
        ConfigError, match=r"has no tokenizer on the driver's node, .*: it needs one of tokenizer\.json"
    ):
        check_tokenizer(model)
