"""Weights stay in memory across rebuilds, kept by a process that ends with the engine."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from raylaunch import Engine, LaunchConfig, LaunchError
from raylaunch.config import shipped_configs
from tests.kept import KEEP, checkpoint, keeper_pids, rebuilds_read_nothing, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.usefixtures("clean")]


def test_a_rebuild_reads_none_of_them_again(
    tiny: LaunchConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = checkpoint(tmp_path)
    rebuilds_read_nothing(tiny.override(f"model.path={tmp_path}", *KEEP), files, caplog)


def test_a_node_without_the_memory_ends_the_launch_in_a_line(tiny: LaunchConfig, tmp_path: Path) -> None:
    shutil.copytree(shipped_configs() / "models" / "tiny-adder", tmp_path, dirs_exist_ok=True)
    os.truncate(tmp_path / "model.safetensors", 4 << 40)  # takes nothing of the disk
    with pytest.raises(LaunchError) as caught, Engine(tiny.override(f"model.path={tmp_path}", *KEEP)):
        pass
    assert (caught.value.code, caught.value.phase) == ("F23", "PLACE")
    assert "recovery.keep_weights: on node" in caught.value.summary
    assert "the weights take 4096.0 GiB of memory, and " in caught.value.summary
    assert len(caught.value.summary.splitlines()) == 1


def test_one_that_is_stopped_ends_with_the_engine(tiny: LaunchConfig) -> None:
    with Engine(tiny.override(*KEEP)) as engine:
        wait(lambda: engine.report.kept.nbytes > 0)
        (pid,) = keeper_pids(engine)
        os.kill(pid, signal.SIGSTOP)
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"
    wait(lambda: not psutil.pid_exists(pid))
