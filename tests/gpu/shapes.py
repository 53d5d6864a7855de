"""Model folders without weights: shapes of real models, cut to a few layers where a test asks, and a tokenizer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

SPECIAL = {
    "<|endoftext|>": "eos",
    "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
    "<|image_pad|>": "image_token_id",
    "<|video_pad|>": "video_token_id",
}
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": 56 * 56,
    "max_pixels": 28 * 28 * 1280,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def shapes_folder() -> Path:
    """Where the ``config.json`` files of real models are: ``RAYLAUNCH_MODEL_SHAPES``. Skips the test without it."""
    folder = os.environ.get("RAYLAUNCH_MODEL_SHAPES")
    if not folder:
        pytest.skip("RAYLAUNCH_MODEL_SHAPES names no folder with qwen3-8b/config.json and the others")
    return Path(folder)


def make_model(target: Path, name: str, layers: int | None = None, *, tokenizer: bool = False) -> Path:
    """A folder with the configuration of ``name``, and with a tokenizer of words ``t0``, ``t1`` and so on."""
    config = json.loads((shapes_folder() / name / "config.json").read_text())
    for section in (config, config.get("text_config") or {}):
        if layers is not None and "num_hidden_layers" in section:
            section["num_hidden_layers"] = layers
            section["max_window_layers"] = min(section.get("max_window_layers") or layers, layers)
            if section.get("layer_types"):
                section["layer_types"] = section["layer_types"][:layers]
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(config))
    if tokenizer:
        add_tokenizer(target)
    return target


def add_tokenizer(target: Path) -> None:
    """A tokenizer of words for a model folder, and for a vision model what prepares its images."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    config: dict[str, Any] = json.loads((target / "config.json").read_text())
    text = config.get("text_config") or config
    ids = {name: config.get(key) for name, key in SPECIAL.items()}
    ids["<|endoftext|>"] = config.get("eos_token_id") or text.get("eos_token_id")
    special = {name: number for name, number in ids.items() if isinstance(number, int)}
    names = {number: name for name, number in special.items()}
    vocabulary = {names.get(number, f"t{number}"): number for number in range(int(text["vocab_size"]))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken(name, special=True) for name in special])
    made.save(str(target / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    settings |= {"pad_token": "<|endoftext|>", "model_max_length": 32768}
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    if "image_token_id" in config:
        (target / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
