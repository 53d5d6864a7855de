"""Slow work is told from a hang: by what grows while it goes on."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time

import pytest
from raylaunch_actors import progress, rank
from raylaunch_actors.gate import RankGate
from raylaunch_actors.spec import RankSpec

from raylaunch import LaunchConfig
from raylaunch.model.shape import ModelShape
from raylaunch.protocol import LaunchPlan
from raylaunch.resolved import launch_of

SLOW_PROGRAM = """
import sys, time
for number in range(10):
    sys.modules[f"slow_part_{number}"] = sys  # as an import does
    time.sleep(0.02)

def run(spec, gate):
    for number in range(10):
        del sys.modules[f"slow_part_{number}"]
    assert gate.state().progress > 3, "nothing was reported"
"""


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    monkeypatch.setattr(progress, "LOOK_S", 0.01)


@pytest.mark.parametrize("activity", ["working", None])
@pytest.mark.parametrize("works", [True, False])
def test_progress_is_reported_while_something_grows_and_only_then(works, activity):
    gate, numbers = RankGate(0, LaunchPlan(1)), itertools.count()
    with progress.reported(gate, activity, lambda: next(numbers) if works else 7):
        time.sleep(0.2)
    state = gate.state()
    assert (state.progress > 3) is works
    assert state.activity == (activity or "starting")


def test_compilers_are_those_that_this_process_has_started(monkeypatch):
    monkeypatch.setattr(progress, "COMPILERS", ("python3", "python3.11", "python3.12", "python3.13", "python"))
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before, end = progress.compilers_work(), time.monotonic() + 5
        while progress.compilers_work() <= before and time.monotonic() < end:
            time.sleep(0.05)
        assert progress.compilers_work() > before
    finally:
        busy.kill()
        busy.wait()


def test_a_folder_grows_with_its_files_those_of_their_full_size_too(tmp_path):
    assert progress.bytes_below(tmp_path / "absent") == (0, 0)
    (tmp_path / "below").mkdir()
    with (tmp_path / "below" / "part").open("wb") as file:
        file.truncate(1 << 20)
        nbytes, blocks = progress.bytes_below(tmp_path)
        file.write(b"x" * (1 << 16))
        file.flush()
        now = progress.bytes_below(tmp_path)
    assert nbytes == now[0] == 1 << 20
    assert now[1] > blocks


def test_a_model_in_a_folder_is_nothing_that_the_hub_sends(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert progress.bytes_fetched(str(tmp_path)) == (0, 0)


def test_f08_what_a_rank_imports_before_it_meets_its_peers_is_reported(tmp_path, monkeypatch):
    (tmp_path / "slow_program.py").write_text(SLOW_PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(rank.PROGRAMS, "slow", "slow_program")
    resolved = launch_of(LaunchConfig.default(), ModelShape("none", 0, 0, 0, 0), "slow")
    spec = RankSpec(**vars(resolved), rank=0, local_rank=0, group="g", bind_host="127.0.0.1")
    started = rank.RankBase(spec)
    assert started.boot() is None
    assert started.health().activity == "importing slow_program"
