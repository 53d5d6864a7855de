"""From the configured model to a folder on this node."""

from __future__ import annotations

from pathlib import Path

from raylaunch.config import ModelConfig
from raylaunch.errors import RankFault
from raylaunch.model import hub
from raylaunch_actors.fingerprint import own_folder
from raylaunch_actors.gate import RankGate
from raylaunch_actors.progress import bytes_fetched, reported


def model_folder(model: ModelConfig, revision: str | None, gate: RankGate, *, weights: bool) -> Path:
    """The model's folder on this node. What is missing of a Hub model is fetched into the local cache.

    Args:
        revision: of a Hub model, what the driver has decided.
        gate: told while something arrives, also if it is another rank of this node that fetches it.
        weights: whether the weights are wanted already, which may take long; dummies are never fetched.

    Raises:
        RankFault: it cannot be had.
    """
    if (folder := own_folder(model.path)) is not None:
        return folder
    patterns = [*hub.SETTINGS]
    weights = weights and model.load_format != "dummy"
    if weights:
        patterns.append(hub.WEIGHTS)  # no pickled ones
    if model.trust_remote_code:
        patterns.append("*.py")
    try:
        with reported(gate, f"fetching {model.path}", lambda: bytes_fetched(model.path)):
            return hub.snapshot(model.path, revision, patterns, weights=weights)
    except (hub.HubError, ValueError) as error:
        raise RankFault(None, f"{model.path} cannot be fetched from the Hub: {error}") from error
