"""Loads the model's tokenizer for the driver: ranks work on token ids only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raylaunch.config import LaunchConfig, ModelConfig
from raylaunch.errors import ConfigError

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def has_tokenizer(model: ModelConfig) -> bool:
    """Whether the model comes with a tokenizer; of a Hub model that is taken for granted."""
    folder = Path(model.tokenizer or model.path).expanduser()
    return not folder.is_dir() or any((folder / file).is_file() for file in FILES)


def load_tokenizer(config: LaunchConfig) -> Any:
    """The tokenizer, or None if the model's folder has none (prompts are token ids then).

    Raises:
        ConfigError: there is one and it cannot be loaded.
    """
    name = config.model.tokenizer or config.model.path
    folder = Path(name).expanduser()
    if not has_tokenizer(config.model):
        if config.model.tokenizer is not None:
            raise ConfigError("model.tokenizer", name, f"the folder has none of {', '.join(FILES)}")
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else name,
            trust_remote_code=config.model.trust_remote_code,
            revision=config.model.revision,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        key = "model.tokenizer" if config.model.tokenizer else "model.path"
        raise ConfigError(key, name, f"its tokenizer cannot be loaded: {error}") from None
