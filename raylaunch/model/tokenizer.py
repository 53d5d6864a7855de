"""Loads the model's tokenizer for the driver: ranks work on token ids only."""

from __future__ import annotations

import logging
import os
import platform
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from raylaunch.config import LaunchConfig, ModelConfig, ServeConfig
from raylaunch.errors import ConfigError
from raylaunch.model import hub
from raylaunch.model.load_formats import reads_files

log = logging.getLogger(__name__)

# transformers (5.23) puts another module in its own place while it is imported: a second thread sees the first one.
_IMPORTING = threading.Lock()
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
# Mistral's own. SGLang has mistral-common read it (0.5.23, is_bare_tekken_checkpoint); transformers alone makes other
# ids of it.
TEKKEN = "tekken.json"


def has_tokenizer(model: ModelConfig) -> bool:
    """Whether the model comes with a tokenizer; of a Hub model that is taken for granted."""
    folder = Path(model.tokenizer or model.path)
    return not os.path.isdir(folder) or _holds(folder, *FILES, TEKKEN)


def _holds(folder: Path, *files: str) -> bool:
    return any((folder / file).is_file() for file in files)


def check_tokenizer(model: ModelConfig) -> None:
    """Reads the folder's ``tokenizer.json`` alone, which takes no second: before a launch, not long after it began.

    Raises:
        ConfigError: there is no such folder, or the installed ``tokenizers`` cannot read it, such as a newer format; or
            it is a copy of a model without weights, for a driver on a node of its own, and the tokenizer was forgotten.
    """
    if model.tokenizer is not None and os.path.isabs(model.tokenizer) and not os.path.exists(model.tokenizer):
        raise ConfigError("model.tokenizer", model.tokenizer, "no such folder; give a tokenizer's, or a Hub name")
    folder = Path(model.tokenizer or model.path)
    bare = model.tokenizer is None and os.path.isdir(folder) and not has_tokenizer(model)
    if bare and reads_files(model.load_format) and not _has_weights(folder):
        expected = (
            f"has no tokenizer on the driver's node, {platform.node()}: it needs one of {', '.join(FILES)} there, "
        )
        raise ConfigError("model.path", str(folder), f"{expected}or engine.sglang.args.skip_tokenizer_init=true")
    if not has_tokenizer(model):
        if model.tokenizer is not None and not model.trust_remote_code:
            raise ConfigError("model.tokenizer", model.tokenizer, f"has none of {', '.join(FILES)}")
        log.warning("%s has no tokenizer: prompts are token ids", folder)
    file = folder / "tokenizer.json"
    if model.trust_remote_code or not os.path.isfile(file):  # the model's own code may read other files
        return
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # it raises no class of its own
        raise _unreadable(model, f"{file.name}: {error}") from None


def _has_weights(folder: Path) -> bool:
    return any(file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf") for file in folder.iterdir())


def load_tokenizer(config: LaunchConfig, revision: str | None = None) -> Any:
    """The tokenizer, or None if the model's folder has none (prompts are token ids then).

    Args:
        revision: of a model on the Hub, the one to read; a tokenizer of another repository has the configured one.
    Raises:
        ConfigError: there is one and it cannot be loaded.
    """
    name = config.model.tokenizer or config.model.path
    folder = Path(name)
    if os.path.isdir(folder) and not _holds(folder, *FILES):
        if config.model.tokenizer is not None:
            raise ConfigError("model.tokenizer", name, _lacks(folder))
        if _holds(folder, TEKKEN):  # else it was said before the launch
            log.warning("%s: prompts are token ids: %s", name, _lacks(folder))
        return None
    with _IMPORTING:
        from transformers import AutoTokenizer

    try:
        if not os.path.isdir(folder):
            code = ("*.py",) if config.model.trust_remote_code else ()
            own = revision if name == config.model.path else None
            folder = hub.snapshot(name, own or config.model.revision, (*hub.SETTINGS, *code))
            if not _holds(folder, *FILES):
                if config.model.tokenizer is None:
                    log.warning("%s, snapshot %s: prompts are token ids: %s", name, folder.name[:7], _lacks(folder))
                    return None
                raise FileNotFoundError(_lacks(folder))
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=config.model.trust_remote_code)
    except Exception as error:  # of many classes, plain Exception among them
        raise _unreadable(config.model, str(error)) from None


def _lacks(folder: Path) -> str:
    unread = f"; {TEKKEN} the engine 'reference' does not read" if _holds(folder, TEKKEN) else ""
    return f"it has none of {', '.join(FILES)}{unread}"


def chat_template_of(settings: ServeConfig) -> str | None:
    """The configured chat template, read if it is a file; None for the tokenizer's own. Raises :class:`ConfigError`."""
    given = settings.chat_template
    if given is None or any(mark in given for mark in ("{{", "{%", "\n")):
        return given
    try:
        return Path(os.path.expanduser(given)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("serve.chat_template", given, f"is no Jinja template, and no file: {error}") from None


def require_chat_template(config: LaunchConfig) -> None:
    """Raises :class:`ConfigError` where a model's folder has no chat template and none is configured."""
    folder = Path(config.model.tokenizer or config.model.path)
    if chat_template_of(config.serve) is not None or not os.path.isdir(folder):
        return
    settings = folder / "tokenizer_config.json"
    with suppress(OSError, UnicodeDecodeError):
        if any(folder.glob("chat_template*")) or '"chat_template"' in settings.read_text(encoding="utf-8"):
            return
    raise ConfigError("model.path", str(folder), "has no chat template: set serve.chat_template, or use generate")


def _unreadable(model: ModelConfig, why: str) -> ConfigError:
    key = "model.tokenizer" if model.tokenizer else "model.path"
    return ConfigError(key, model.tokenizer or model.path, f"its tokenizer cannot be loaded: {why}")
