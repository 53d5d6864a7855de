"""The sweep over two nodes that ships, made shorter: two groups on a node each, side by side, then two over both."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from raylaunch.benchmarks.sweep.lines import NAME, read_lines
from raylaunch.config import shipped_configs
from tests.busy import patient
from tests.nodes.hosts import Hosts, address, can_make_hosts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not can_make_hosts(), reason="needs the right to make network namespaces"),
]


def test_groups_of_one_node_and_of_two() -> None:
    sweep = yaml.safe_load((shipped_configs() / "sweeps" / "tiny-two-nodes.yaml").read_text())
    sweep |= {"starts": 1, "measure": {"prefill": {"tokens": [8], "repeat": 2}}}
    sweep["grid"] = {"nodes": sweep["grid"]["nodes"], "engine.threads": [1, 2]}
    sweep["settings"] = {"capture.enabled": False, "deadlines.connect": 200}
    with tempfile.TemporaryDirectory(prefix="rl-") as folder, Hosts(workers=2) as hosts:
        file, out = Path(folder) / "sweep.yaml", Path(folder) / "out"
        file.write_text(yaml.safe_dump(sweep, sort_keys=False))
        command = [sys.executable, "-m", "raylaunch", "bench", "sweep", str(file), "--output", str(out)]
        process = hosts.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        said, errors = process.communicate(timeout=patient(400))
        assert process.returncode == 0, errors.decode()
        print(said.decode())
        lines = read_lines(out / NAME)
        assert [hosts.ranks(host) for host in (1, 2)] == [[], []]
    on_one = [line for line in lines if line["settings"]["parallel.nodes"] == 1]
    on_both = [line for line in lines if line["settings"]["parallel.nodes"] == 2]
    both = {address(1), address(2)}
    assert [{rank["node"] for rank in line["ranks"]} for line in on_both] == [both, both]
    assert [len({rank["node"] for rank in line["ranks"]}) for line in on_one] == [1, 1]
    assert {rank["node"] for line in on_one for rank in line["ranks"]} == both
    for pair in (on_one, on_both):  # four CPUs hold two groups of either kind, and none of both kinds
        assert {f"{line['cell']}/1" for line in pair} == {other for line in pair for other in line["beside"]}
    assert "gloo" in on_both[0]["figures"]["launch"]["all_reduce"]
    assert "2 starts shared a node with others" in said.decode()
