"""From the configured model to a folder on this node."""

from __future__ import annotations

import platform
from pathlib import Path

from raylaunch.config import ModelConfig
from raylaunch.errors import RankFault
from raylaunch.model import hub
from raylaunch_actors.gate import RankGate
from raylaunch_actors.progress import bytes_fetched, reported


def model_folder(model: ModelConfig, gate: RankGate, *, weights: bool, commit: str | None = None) -> Path:
    """The model's folder on this node. What is missing of a Hub model is fetched into the local cache.

    Args:
        gate: told while something arrives, also if it is another rank of this node that fetches it.
        weights: whether the weights are wanted already, which may take long; dummies are never fetched.
        commit: the one to take of a Hub model; else it is what ``model.revision`` means now, on the Hub if it answers.

    Raises:
        RankFault: it cannot be had.
    """
    folder = Path(model.path)
    if folder.is_absolute():  # as the driver has made it; else it is a name on the Hub, whatever this folder holds
        if folder.is_dir():
            return folder
        where = f"there is no folder {model.path} on node {platform.node()}"
        raise RankFault(None, f"{where}: a model's folder must exist on every node that has a rank")
    patterns = [*hub.SETTINGS]
    weights = weights and model.load_format != "dummy"
    if weights:
        patterns.append(hub.WEIGHTS)  # no pickled ones
    if model.trust_remote_code:
        patterns.append("*.py")
    try:
        with reported(gate, f"fetching {model.path}", lambda: bytes_fetched(model.path)):
            return hub.snapshot(model.path, commit or model.revision, patterns, weights=weights)
    except (hub.HubError, ValueError) as error:
        raise RankFault(None, f"{model.path} cannot be fetched from the Hub: {error}") from error
