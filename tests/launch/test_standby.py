"""Standby ranks: a rebuild adopts them, whoever dies, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raylaunch import Engine, LaunchConfig
from tests.head import ROOT
from tests.standing import lose, pids_of, said, spare_pids, streaming, without_spares

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.usefixtures("clean")
def test_a_rebuild_adopts_them_and_one_that_is_killed_is_replaced(
    tiny: LaunchConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two losses in a row; one where a spare does not answer, whose place a new process takes; one without spares."""
    pauses = []
    with Engine(tiny.override("capture.enabled=false", "recovery.rebuilds=9", "recovery.standby=1")) as engine:
        right = engine.generate("12+30=", max_new_tokens=8).token_ids

        def loses(rank: int, adopted: int) -> None:
            pauses.append(lose(engine, rank, came))
            assert [place.adopted for place in engine.report.places].count(True) == adopted
            with capsys.disabled():
                print(f"\n{engine.report.table(140)}\n{said(pauses)}", flush=True)

        with streaming(engine, 200) as came:
            first = spare_pids(engine, 2)
            os.kill(first[0], signal.SIGKILL)
            while engine.report.standby.ranks == 2:
                time.sleep(0.01)
            for rank in (0, 1):
                spares = spare_pids(engine, 2)
                assert (len({*first, *spares}), engine.restarts) == (3 + rank, rank)
                loses(rank, adopted=2)
                assert sorted(pids_of(engine)) == sorted(spares)
                assert "2 ranks on 1 node, 2 of which stood by" in engine.report.table()
            os.kill(spare_pids(engine, 2)[0], signal.SIGSTOP)
            loses(0, adopted=1)
            spare_pids(engine, 2)
            with capsys.disabled():
                print(f"{engine.report.standby.nbytes >> 21} MiB each")
            without_spares(engine)
            loses(1, adopted=0)
        assert engine.generate("12+30=", max_new_tokens=8).token_ids == right


ON_GPUS = """
import time
import ray
from raylaunch import LaunchConfig
from raylaunch.cluster.session import enter
from raylaunch.group.launch import launch
from raylaunch.group.runtime import EngineRuntime
from raylaunch.model.shape import ModelShape
from raylaunch.report import LaunchReport
from raylaunch.resolved import launch_of

@ray.remote(num_gpus=1, num_cpus=0)
class Neighbour:
    def gpus(self):
        return ray.get_gpu_ids()

def launched():
    group = launch(resolved, LaunchReport("gpus"), runtime=runtime).group
    free = ray.available_resources().get("GPU", 0.0)
    told = [(one.adopted, one.holder is not None, one.process.gpus) for one in group.members]
    while standby.tend(group).ranks < 2:
        time.sleep(0.1)
    print(told, free, sorted({spare.visible for spare in standby.spares}), flush=True)
    return group

if __name__ == "__main__":
    ray.init(num_cpus=2, num_gpus=3, include_dashboard=False, log_to_driver=False)
    resolved = launch_of(LaunchConfig.default(["engine.device=cuda"]), ModelShape("none", 0, 0, 0, 0), "noop")
    runtime = EngineRuntime.in_session(enter(None, 0, "raylaunch"), spares=1)
    standby = runtime.standby
    launched().close(10)
    second = launched()
    ray.util.remove_placement_group(second.placement.group)
    print(["placement group was removed" in text for text in second.ended(10).deaths.values()][:1], flush=True)
    second.close(10)
    neighbour = Neighbour.remote()
    print(ray.get(neighbour.gpus.remote()), flush=True)
    launched().close(10)
    standby.close(10)
    ray.kill(neighbour)
    while ray.available_resources().get("GPU") != 3.0:
        time.sleep(0.1)
    ray.shutdown()
"""


def test_gpus_are_kept_by_holders_and_spares_of_other_gpus_are_ended(tmp_path: Path) -> None:
    """Of a cluster that only counts its GPUs, as ranks that do nothing need none."""
    script = tmp_path / "on_gpus.py"
    script.write_text(ON_GPUS)
    ran = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "[(False, False, ('0',)), (False, False, ('1',))] 1.0 ['0,1']",
        "[(True, True, ('0',)), (True, True, ('1',))] 1.0 ['0,1']",
        "[True]",  # adopted ranks are in no placement group, their holders are
        "[0]",
        "[(False, True, ('1',)), (False, True, ('2',))] 0.0 ['1,2']",
    ], ran.stderr
