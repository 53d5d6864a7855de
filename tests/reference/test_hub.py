"""What of a Hub model is fetched when, and that a rank is not taken for hung meanwhile."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from huggingface_hub import constants
from raylaunch_actors import progress
from raylaunch_actors.fingerprint import model_prints
from raylaunch_actors.gate import RankGate
from raylaunch_actors.reference.hub import model_folder

from raylaunch.config import ModelConfig
from raylaunch.errors import RankFault
from raylaunch.protocol import LaunchPlan
from tests.reference import hub

SETTINGS = {"config.json", "model.safetensors.index.json"}


@pytest.fixture
def gate(tmp_path, monkeypatch):
    with hub.hub() as address:
        settings = {
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path),
            "HF_HUB_OFFLINE": False,
            "DOWNLOAD_CHUNK_SIZE": 1 << 14,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(progress, "LOOK_S", 0.02)
        yield RankGate(0, LaunchPlan(1))


def names(folder):
    return {file.name for file in folder.iterdir()}


def test_f08_weights_come_after_connect_and_a_rank_that_waits_for_them_says_so(gate):
    model = ModelConfig(path=hub.MODEL)
    assert names(model_folder(model, None, gate, weights=False)) == SETTINGS
    before = gate.state().progress
    assert names(model_folder(model, None, gate, weights=True)) == SETTINGS | {"model.safetensors"}
    state = gate.state()
    assert state.progress >= before + 3  # once for the begin, and whenever more has arrived
    assert state.activity == f"fetching {hub.MODEL}"


def test_f19_settings_and_weights_are_of_the_commit_that_the_driver_has_found(gate, monkeypatch):
    model = ModelConfig(path=hub.MODEL)
    found = hub.COMMIT
    monkeypatch.setattr(hub, "COMMIT", "1" * 40)  # somebody pushes
    settings = model_folder(model, found, gate, weights=False)
    assert model_prints(settings) == {"model": f"commit {found}"}
    assert model_folder(model, found, gate, weights=True) == settings
    assert "model.safetensors" in names(settings)


def test_dummies_need_no_weights_and_code_is_fetched_where_it_is_trusted(gate):
    model = ModelConfig(path=hub.MODEL, load_format="dummy", trust_remote_code=True)
    assert names(model_folder(model, None, gate, weights=True)) == SETTINGS | {"modeling.py"}


def test_a_model_that_the_hub_does_not_have_is_named(gate):
    with pytest.raises(RankFault, match=r"someone/else cannot be fetched from the Hub"):
        model_folder(ModelConfig(path="someone/else"), None, gate, weights=False)


def test_a_folder_that_this_node_does_not_have_is_named_with_the_node(gate, tmp_path):
    model = ModelConfig(path=str(tmp_path / "m"))
    with pytest.raises(RankFault, match=rf"there is no folder {tmp_path}/m on node {platform.node()}"):
        model_folder(model, None, gate, weights=False)


def test_a_name_on_the_hub_is_no_folder_of_the_ranks(gate, monkeypatch, tmp_path):
    """The driver has looked: what the working directory of a rank holds is something else."""
    model = ModelConfig(path="org/name")
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("raylaunch.model.hub.snapshot", lambda name, *_, **__: Path(f"/cache/{name}"))
    assert model_folder(model, None, gate, weights=False) == Path("/cache/org/name")
