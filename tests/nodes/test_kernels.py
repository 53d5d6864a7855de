"""Compiled kernels go from the host that has them to one that will run ranks, over its cable, and are built once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.busy import patient
from tests.nodes.hosts import Hosts, can_make_hosts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not can_make_hosts(), reason="needs root, for network namespaces"),
]
BYTES = 3 << 20

DRIVER = """
import json, sys, time
import raylaunch, ray
from raylaunch_actors.kernel_cache import Cached
from raylaunch.config import LaunchConfig
from raylaunch.group import kernels
from raylaunch.group.remote import agent_on
from raylaunch.report import LaunchReport

root, nbytes = sys.argv[1], int(sys.argv[2])
ray.init(log_to_driver=False, logging_level="ERROR", namespace="kernels")
nodes = sorted(((one["NodeManagerAddress"], one["NodeID"]) for one in ray.nodes() if "CPU" in one["Resources"]))
agents = {node: agent_on(node) for _, node in nodes}
first, second = agents.values()
files = [Cached(f"tvm-ffi/{n}/lib.so", 0o755, 10**18 + n, bytes([n]) * nbytes) for n in range(40)]
for one in files:
    assert ray.get(first.unpack_cached.remote(root, [one])) == 1
config = LaunchConfig.default([f"engine.sglang.cache_dir={root}"])
before = [len(ray.get(one.cached.remote(root)).files) for one in agents.values()]
report = LaunchReport("tiny", group="first")
began = time.monotonic()
cold = {node: agents[node] for node in list(agents)[1:]}
kernels.prepare(cold, config, report, lambda: False)
took = time.monotonic() - began
held = [ray.get(one.cached.remote(root)) for one in agents.values()]
(copy,) = ray.get(second.pack_cached.remote(root, ["tvm-ffi/7/lib.so"]))

others, late = {node: agent_on(node) for node in cold}, LaunchReport("tiny", group="third")
ray.get([one.ready.remote() for one in others.values()])
waiting = [one.begin_building.remote(root, kernels.launch_mark(config), "second", 60.0) for one in others.values()]
early, _ = ray.wait(waiting, timeout=3.0)
kernels.finish(cold)
waited = ray.get(waiting, timeout=30)
began = time.monotonic()
kernels.prepare(others, config, late, lambda: False)
print(json.dumps({
    "before": before, "after": [len(one.files) for one in held], "same": held[0] == held[1], "said": report.kernels,
    "took": took, "copy": [copy.mode, copy.mtime_ns, copy.data == files[7].data], "early": len(early), "waited": waited,
    "again": late.kernels, "again_took": time.monotonic() - began,
}))
"""


def test_a_host_without_kernels_gets_them_and_none_is_built_twice(tmp_path: Path) -> None:
    """More than Ray's object store holds at once goes through it."""
    with Hosts(workers=2, hidden={2: tmp_path}) as hosts:
        command = [sys.executable, "-c", DRIVER, str(tmp_path / "cache"), str(BYTES)]
        process = hosts.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=patient(200))
        assert process.returncode == 0, err.decode()[-3000:]
    seen = json.loads(out.decode().splitlines()[-1])
    print(seen)
    assert seen["before"] == [40, 0], "each host has a folder of its own"
    assert (seen["after"], seen["same"]) == ([40, 40], True)
    assert seen["said"].startswith("40 files of kernels, 120.0 MiB, copied to node ")
    assert seen["copy"] == [0o755, 10**18 + 7, True]
    assert seen["early"] == 0, "it waits as long as the first one builds"
    assert all(2.5 < one < patient(10) for one in seen["waited"])
    assert seen["again"] == "", "nothing is copied or waited for any more"
