"""What others do to a group that serves, by Ray's own means: unready at once, and named truthfully."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import get_placement_group, placement_group_table

from raylaunch import Engine, LaunchConfig, RequestFailed
from tests.busy import patient
from tests.head import ROOT

pytestmark = pytest.mark.slow


def kill_rank_1(name: str) -> None:
    ray.kill(ray.get_actor(f"{name}/rank1", namespace="raylaunch"))


def remove_placement_group(name: str) -> None:
    assert name in {entry["name"] for entry in placement_group_table().values()}
    ray.util.remove_placement_group(get_placement_group(name))


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (kill_rank_1, "rank 1 died: ended by ray.kill, which somebody has called"),
        (remove_placement_group, "ended with its placement group, which somebody has removed"),
    ],
)
def test_a_group_that_somebody_ends(harm: Callable[[str], None], said: str, tiny: LaunchConfig) -> None:
    with Engine(tiny) as engine:
        launched = engine._supervisor._launched
        assert launched is not None
        asked: list[BaseException] = []

        def ask() -> None:
            try:
                engine.generate("1+1=", max_new_tokens=1900, ignore_eos=True)
            except RequestFailed as error:
                asked.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.3)
        began = time.monotonic()
        harm(launched.group.members[0].spec.group)
        while engine.health().ready and time.monotonic() < began + 5:
            time.sleep(0.01)
        assert time.monotonic() - began < patient(1.0)
        asking.join(10)
        assert len(asked) == 1
        while engine.health().condition != "failed" and time.monotonic() < began + 20:
            time.sleep(0.05)
        error = engine.last_error
        assert error is not None
        assert (error.code, error.phase) == ("F07", "SERVE")
        assert said in error.headline()


PRIVATE = """
import sys, time
import psutil
from raylaunch import Engine, LaunchConfig

if __name__ == "__main__":
    config = LaunchConfig.default(["capture.enabled=false", "recovery.rebuilds=1"])
    with Engine(config) as engine:
        started = psutil.Process().children(recursive=True)
        (one,) = [process for process in started if process.name() == sys.argv[1]]
        began = time.monotonic()
        one.kill()
        while engine.health().ready and time.monotonic() < began + 20:
            time.sleep(0.01)
        unready = time.monotonic() - began
        while engine.health().condition != "failed" and time.monotonic() < began + 30:
            time.sleep(0.05)
        print(f"unready {unready:.2f}", flush=True)
        print(engine.last_error.headline(), flush=True)
    import ray

    print("in a session", ray.is_initialized(), flush=True)
    import os

    os._exit(0)
"""


@pytest.mark.parametrize(
    ("process", "said"),
    [
        (
            "raylet",
            "LaunchError F15 [SERVE] node {}, which the driver runs on, is lost: its raylet, Ray's process there",
        ),
        ("gcs_server", "LaunchError F15 [SERVE] Ray's head is gone: nobody listens at {}"),
    ],
)
def test_a_private_cluster_that_loses_a_process_of_its_own(process: str, said: str, tmp_path: Path) -> None:
    """No rebuild is tried, whose failure would be named in its place; no other session is started instead."""
    script = tmp_path / "loses.py"
    script.write_text(PRIVATE)
    ran = subprocess.run(
        [sys.executable, str(script), process], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    print(ran.stdout, ran.stderr[-2000:])
    lines = ran.stdout.splitlines()
    (unready,) = (float(line.split()[1]) for line in lines if line.startswith("unready"))
    assert unready < patient(1.0)
    before, _, after = said.partition("{}")
    (headline,) = (line for line in lines if line.startswith("LaunchError"))
    assert headline.startswith(before)
    assert after in headline
    assert "F13" not in headline
    assert "worker.py" not in ran.stderr, "nothing of Ray is asked once it was left"
