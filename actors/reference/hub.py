"""From the configured model to a folder on this node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raylaunch.config import ModelConfig
from raylaunch.errors import RankFault

PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What is fetched of a Hub model: no pickled weights."""


def model_folder(model: ModelConfig, progress: Callable[[str], None]) -> Path:
    """The model's folder; fetches a Hub model into the local cache. Raises RankFault if it cannot be had."""
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        return folder
    if model.path.startswith((".", "/", "~")):
        raise RankFault(
            None, f"there is no folder {model.path} on this node: a model's folder must exist on every node"
        )
    from huggingface_hub import snapshot_download

    progress(f"fetching {model.path}")
    patterns = [pattern for pattern in PATTERNS if model.load_format == "auto" or pattern != "*.safetensors"]
    if model.trust_remote_code:
        patterns.append("*.py")
    try:
        return Path(snapshot_download(model.path, revision=model.revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise RankFault(None, f"{model.path} cannot be fetched from the Hub: {error}") from error
