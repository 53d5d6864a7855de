"""What goes wrong with the folder of compiled kernels is told, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from raylaunch import LaunchConfig, LaunchError
from raylaunch.group import kernels
from raylaunch.group.remote import agent_on
from raylaunch.report import LaunchReport

pytestmark = pytest.mark.usefixtures("clean")


def test_a_folder_that_cannot_be_used_ends_no_launch(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    node = ray.get_runtime_context().get_node_id()
    agents, report = {node: agent_on(node)}, LaunchReport("tiny")
    config = LaunchConfig.default().replace({"engine.sglang.cache_dir": str(tmp_path / "file")})
    kernels.prepare(agents, config, report, lambda: False)
    assert "a node builds its kernels alone: NotADirectoryError" in report.kernels
    kernels.finish(agents)
    kernels.prepare(agents, config.replace({"engine.sglang.cache_dir": str(tmp_path)}), report, lambda: False)
    assert report.kernels == ""
    with pytest.raises(LaunchError, match="shut down"):
        kernels.prepare(agents, config, report, lambda: True)
    ray.kill(agents[node])
