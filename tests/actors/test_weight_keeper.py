"""A keeper's files stay in memory; what a node has not is refused in a line."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from raylaunch_actors import weight_keeper
from raylaunch_actors.weight_keeper import AT_ONCE, Kept, WeightKeeperBase, available_bytes, weight_files_of

from raylaunch.config import LaunchConfig, shipped_configs
from raylaunch.model.load_formats import Weights, weights_of
from tests.pages import forget, resident

MODEL = shipped_configs() / "models" / "tiny-adder"


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> WeightKeeperBase:
    monkeypatch.setattr("os.nice", lambda by: by)
    return WeightKeeperBase({})


def weights(folder: Path, *settings: str) -> Weights:
    return weights_of(LaunchConfig.default([f"model.path={folder}", *settings]), (0, 1))


@pytest.mark.parametrize("may_lock", [True, False])
def test_pages_stay_when_the_kernel_is_asked_to_forget_them(
    keeper: WeightKeeperBase, may_lock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(AT_ONCE + 12345))
    forget(file)
    if resident(file):
        pytest.skip("this file system is in memory")
    if not may_lock:
        monkeypatch.setattr(weight_keeper._C, "mlock", lambda place, size: -1)
    assert keeper.prepare(weights(tmp_path)) == Kept(os.getpid(), 0, AT_ONCE + 12345)
    threading.Thread(target=keeper.hold, daemon=True).start()
    end = time.monotonic() + 10
    while keeper.kept().nbytes < AT_ONCE + 12345 or resident(file) < AT_ONCE + 12345:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.05)  # until they are mapped
    forget(file)
    assert resident(file) >= AT_ONCE + 12345
    assert keeper.kept().locked or not may_lock


@pytest.mark.parametrize(
    ("engine", "there", "read"),
    [
        ("reference", ("model.safetensors", "other.safetensors"), ["model.safetensors"]),
        ("sglang", ("model.safetensors", "other.safetensors"), ["model.safetensors", "other.safetensors"]),
    ],
)
def test_each_engine_has_its_files(engine: str, there: tuple[str, ...], read: list[str], tmp_path: Path) -> None:
    shutil.copy(MODEL / "config.json", tmp_path)
    for name in there:
        (tmp_path / name).touch()
    assert [file.name for file in weight_files_of(weights(tmp_path, f"engine={engine}"))] == read


@pytest.mark.parametrize(
    ("available", "files", "problem"),
    [
        (99, 1, "the weights take 100 B of memory, and 99 B are available"),
        (100, 1, ""),
        (100, 0, "holds neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_what_cannot_be_kept_is_said_in_a_line(
    keeper: WeightKeeperBase, available: int, files: int, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    for _ in range(files):
        (tmp_path / "model.safetensors").write_bytes(bytes(100))
    monkeypatch.setattr(weight_keeper, "available_bytes", lambda: available)
    said = keeper.prepare(weights(tmp_path)).problem
    assert problem in said if problem else said == ""
    assert len(said.splitlines()) <= 1


@pytest.mark.parametrize(
    ("limit", "current", "available"),
    [("max", 10, None), ("1000", 600, 1000 - (600 - 50 - 30)), ("1000", 5000, 0)],
)
def test_a_containers_limit_counts(limit: str, current: int, available: int | None, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{current}\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 50\nactive_file 30\n")
    assert available_bytes(tmp_path) == available if available is not None else available_bytes(tmp_path) > 1 << 20
    assert available_bytes(tmp_path / "none") > 1 << 20
