"""What ranks compare of the model before SGLang loads it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from huggingface_hub import constants
from raylaunch_actors.fingerprint import model_prints
from raylaunch_actors.sglang_engine.launch import model_folder

from raylaunch.config import LaunchConfig
from raylaunch.errors import RankFault


def prints_of(path: str, **more: str) -> dict[str, str]:
    model = LaunchConfig.default().replace({"model.path": path, **more}).model
    return model_prints(model_folder(model, model.revision))


def test_f19_of_a_hub_model_the_commit_that_this_node_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that have fetched a branch on different days have different ones."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert prints_of("a/b")["model"].endswith("is no folder")
    for branch, commit in (("main", "0f"), ("old", "0e")):
        (tmp_path / "models--a--b" / "snapshots" / commit).mkdir(parents=True)
        reference = tmp_path / "models--a--b" / "refs" / branch
        reference.parent.mkdir(exist_ok=True)
        reference.write_text(commit)
    assert prints_of("a/b") == {"model": "commit 0f"}
    assert prints_of("a/b", **{"model.revision": "old"}) == {"model": "commit 0e"}


def test_f22_a_folder_is_that_of_this_node(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert prints_of(str(tmp_path))["model"] == "a folder"
    with pytest.raises(RankFault, match=f"there is no folder {tmp_path}/no on node {platform.node()}: a model"):
        prints_of(str(tmp_path / "no"))
