"""What ranks compare of their environment, and what of it nobody may read."""

from __future__ import annotations

import os
import types

import pytest
import torch
from raylaunch_actors.device import device_prints, driver_version
from raylaunch_actors.fingerprint import PACKAGES, environment_prints, fingerprint, model_prints

from raylaunch import LaunchConfig
from raylaunch.model.hub import commit_of


@pytest.mark.parametrize(
    ("name", "compared"),
    [
        ("NCCL_DEBUG", True),
        ("SGLANG_USE_AITER", True),
        ("OMP_NUM_THREADS", True),
        ("NCCL_SOCKET_IFNAME", False),  # names of interfaces differ from node to node
        ("HOME", False),
        ("RAYLAUNCH_API_KEY", False),  # the driver's, which only workers of its own node inherit
    ],
)
def test_f19_variables_that_change_results_are_compared(name, compared):
    prints = environment_prints({name: "1"}, "group")
    assert prints == ({f"environment variable {name}": "1"} if compared else {})


@pytest.mark.parametrize("name", ["SGLANG_API_KEY", "TORCH_HUB_TOKEN", "SGLANG_SECRET", "NCCL_PASSWORD"])
def test_f19_a_secret_is_compared_and_not_shown(name):
    def print_of(value, group="group"):
        return environment_prints({name: value}, group)[f"environment variable {name}"]

    assert "sesame" not in print_of("sesame")
    assert print_of("sesame") == print_of("sesame") != print_of("open")
    assert print_of("sesame", "another launch") != print_of("sesame")


def test_f19_a_print_has_every_key_and_each_key_shows_its_own_change(tmp_path, monkeypatch):
    def prints(*settings):
        config = LaunchConfig.default(settings)
        spec = types.SimpleNamespace(config=config, group="group", initial_environment=dict(os.environ))
        return fingerprint(spec, tmp_path)

    def changed():
        after = prints()
        return {key for key in before | after if before.get(key) != after.get(key)}

    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    before = prints()
    assert before == prints()
    versions = {f"version of {name}" for name in (*PACKAGES, "python")}
    assert set(before) >= versions | {"processor", "configuration", "model", "environment variable NCCL_DEBUG"}
    assert before["version of torch"] == torch.__version__
    assert prints("engine.threads=2") == {**before, "configuration": prints("engine.threads=2")["configuration"]}
    assert prints("engine.threads=2") != before
    (tmp_path / "model.safetensors").touch()
    assert changed() == {"model file model.safetensors"}
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    assert changed() == {"model file model.safetensors", "environment variable NCCL_DEBUG"}


def test_a_cpu_has_no_prints_of_a_gpu_and_no_driver_is_no_crash():
    assert device_prints(torch.device("cpu")) == {}
    assert driver_version()


def test_f19_of_a_folder_names_sizes_and_configuration_are_compared(tmp_path):
    missing = tmp_path / "Qwen" / "Qwen3-8B"
    assert model_prints(missing) == {"model": f"{missing} is no folder"}
    (tmp_path / "config.json").write_text("{}")
    empty = model_prints(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert (other := model_prints(tmp_path)) != empty
    (tmp_path / "model.safetensors").write_text("w")
    (tmp_path / "README.md").touch()
    assert model_prints(tmp_path) == {**other, "model file model.safetensors": "1 bytes"}
    assert commit_of(tmp_path) is None


def test_f19_of_a_hub_model_the_commit_is_compared_and_not_what_is_fetched_already(tmp_path):
    one, other = (tmp_path / node / "models--a--b" / "snapshots" / "0f" for node in ("one", "other"))
    for folder in (one, other):
        folder.mkdir(parents=True)
    (other / "model.safetensors").touch()
    assert model_prints(one) == model_prints(other) == {"model": "commit 0f"}
