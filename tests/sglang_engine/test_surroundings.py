"""What surrounds SGLang in a rank: its variables, its caches, and reports that slow work goes on."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
import types

import pytest

from actors.sglang_engine import environment, progress
from raylaunch import LaunchConfig


def spec(*overrides, rank=1):
    return types.SimpleNamespace(config=LaunchConfig.default(overrides), group="g", rank=rank)


@pytest.mark.parametrize(("kind", "value"), [("sgl_kernel", "0"), ("jit", "1"), ("custom", None), ("library", None)])
def test_the_implementation_is_chosen_by_a_variable(kind, value):
    assert environment.variables(spec(f"communicator.kind={kind}")).get(environment.IMPLEMENTATION) == value


def test_ranks_that_share_a_gpu_look_like_two_hosts_to_nccl():
    shared = [environment.variables(spec("placement.resources_per_rank={GPU: 0.5}", rank=rank)) for rank in (0, 1)]
    assert shared[0]["NCCL_HOSTID"] != shared[1]["NCCL_HOSTID"]
    assert "NCCL_HOSTID" not in environment.variables(spec())


def test_caches_lie_in_one_folder_for_a_set_of_versions(tmp_path, monkeypatch):
    mine = spec(f"engine.sglang.cache_dir={tmp_path}")
    first = environment.variables(mine)
    assert {first[name].startswith(str(tmp_path)) for name in environment.CACHES} == {True}
    monkeypatch.setattr(environment, "package_version", lambda name: "other")
    assert environment.variables(mine)["TRITON_CACHE_DIR"] != first["TRITON_CACHE_DIR"]


def test_what_the_user_has_set_stays(tmp_path, monkeypatch):
    names = environment.variables(spec()).keys()
    for name in names:
        monkeypatch.setenv(name, str(tmp_path / name))
    environment.prepare(spec())
    assert environment.os.environ["NCCL_CUMEM_ENABLE"] == str(tmp_path / "NCCL_CUMEM_ENABLE")


class Gate:
    def __init__(self):
        self.said = []

    def progress(self, activity):
        self.said.append(activity)

    def alive(self):
        self.said.append(None)


@pytest.mark.parametrize("activity", ["working", None])
@pytest.mark.parametrize("works", [True, False])
def test_progress_is_reported_while_something_grows_and_only_then(works, activity, monkeypatch):
    monkeypatch.setattr(progress, "LOOK_S", 0.01)
    gate, numbers = Gate(), itertools.count()
    with progress.reported(gate, activity, lambda: next(numbers) if works else 7):
        time.sleep(0.2)
    assert (len(gate.said) > 3) is works
    assert gate.said[0] == activity


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
