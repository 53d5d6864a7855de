"""F14: the driver is killed. Nothing can be done any more by the driver then, and nothing may stay."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from tests.busy import patient
from tests.head import ROOT, Head
from tests.nodes.remote import RemoteDriver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GONE_S = 5.0
LATE = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # try for a minute to reach the cluster that is gone
STOPS = {
    "serving": (),
    "serving, ranks stand by": ("recovery.rebuilds=1", "recovery.standby=1"),
    "serving, weights are kept": ("recovery.rebuilds=1", "recovery.keep_weights=true"),
    "capturing, rank 0 in a collective": ("faults=[{action: sleep, rank: 1, at: capture prefill 8 1}]",),
    "capturing, rank 1 in native code": ("faults=[{action: hold_gil, rank: 1, at: capture prefill 8 1}]",),
}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster that goes on when the driver dies."""
    head = Head(cpus=4, more={"PYTHONPATH": str(ROOT)})
    head.start()
    yield head
    head.stop()


@pytest.mark.parametrize("settings", STOPS.values(), ids=STOPS.keys())
def test_ranks_and_placement_group_end_with_their_driver(settings: tuple[str, ...], head: Head) -> None:
    with RemoteDriver(partial(Popen, env=head.environment, cwd=ROOT), head.folder, *settings) as remote:
        stand_by, keep = "recovery.standby=1" in settings, "recovery.keep_weights=true" in settings
        if settings and not stand_by and not keep:
            remote.hear("step", phase="CAPTURE")
            time.sleep(1)  # they are in it by now
        else:
            remote.hear("ready")
        expected, end = (
            6 if stand_by else 4 if keep else 3,
            time.monotonic() + 60,
        )  # two ranks and the agent of their node, and spares
        while len(held := head.ranks()) < expected and (stand_by or keep) and time.monotonic() < end:
            time.sleep(0.1)
        assert len(held) == expected
        remote.process.kill()
        took = seconds_until_gone(held)
    print(f"gone after {took:.1f} s")
    assert took < patient(GONE_S)
    assert head.held() == set()


def test_a_private_cluster_ends_with_its_driver(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(ROOT)
    with RemoteDriver(partial(Popen, env=environment, cwd=ROOT), tmp_path) as remote:
        remote.hear("ready")
        started = [one for one in psutil.Process(remote.process.pid).children(recursive=True) if one.name() not in LATE]
        assert {"gcs_server", "raylet"} <= {one.name() for one in started}
        remote.process.kill()
        took = seconds_until_gone(started)
    print(f"gone after {took:.1f} s")
    assert took < patient(GONE_S)


def seconds_until_gone(processes: list[psutil.Process]) -> float:
    """Seconds until none of them runs, at most 30."""
    began = time.monotonic()
    while any(running(one) for one in processes) and time.monotonic() < began + 30:
        time.sleep(0.02)
    return time.monotonic() - began


def running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
