"""How workers of a private cluster are started, and what is said of one that cannot be joined."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray
import ray._private.ray_constants as constants
from ray._private.runtime_env import uv_runtime_env_hook
from ray._private.worker import _maybe_modify_runtime_env

from raylaunch.cluster.session import _joining_failed
from raylaunch.ray_private import UV, workers_without_uv
from raylaunch.startup.shadows import _entries


@pytest.fixture
def below_a_project(monkeypatch, tmp_path):
    """As under ``uv run`` in a folder below the project's."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    command = ["uv", "run", "raylaunch", "generate"]
    monkeypatch.setattr(uv_runtime_env_hook, "_get_uv_run_cmdline", lambda: command)


def test_a_private_clusters_workers_are_not_started_by_uv(below_a_project):
    with workers_without_uv():
        assert _maybe_modify_runtime_env(None, False) is None
    assert getattr(constants, UV) is True


def test_a_cluster_that_uv_cannot_be_used_with_is_named_with_the_remedy(below_a_project):
    with pytest.raises(RuntimeError) as caught:
        _maybe_modify_runtime_env(None, False)
    said = _joining_failed("10.0.0.1:6379", caught.value)
    assert said.startswith("the Ray cluster at '10.0.0.1:6379' cannot be joined from here: Your /")
    assert f"{UV}=0" in said
    assert _joining_failed("x:1", ConnectionError("nobody")) == "no Ray cluster at 'x:1': nobody"


@pytest.mark.slow
def test_the_folders_that_ray_has_told_its_workers(tmp_path, monkeypatch):
    if ray.is_initialized():
        ray.shutdown()
    monkeypatch.chdir(tmp_path)
    expected = _entries()
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100 << 20)
    try:
        os.chdir(Path("/"))
        assert _entries() == expected

        @ray.remote
        def workers_path() -> list[str]:
            import sys

            return sys.path

        found = ray.get(workers_path.remote())
        assert [os.path.realpath(one) for one in found[: len(expected)]] == list(expected)
    finally:
        ray.shutdown()
