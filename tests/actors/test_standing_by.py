"""A rank that stands by, as a plain object."""

from __future__ import annotations

import sys
import threading
import types
from dataclasses import replace
from pathlib import Path

import pytest
from raylaunch_actors import rank
from raylaunch_actors.spec import RankSpec

from raylaunch import LaunchConfig
from raylaunch.errors import RankFault
from raylaunch.model.shape import ModelShape
from raylaunch.resolved import launch_of

PROGRAM = """
def imports(spec):
    yield "first_import"
    yield "no_such_module"
    yield "second_import"

def run(spec, gate):
    first = spec.initial_environment
    gate.progress(f"runs as rank {spec.rank} with {first.get('OF_SPARE')} {first.get('LATER')}")
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RankSpec:
    (tmp_path / "a_program.py").write_text(PROGRAM)
    (tmp_path / "first_import.py").write_text("import os; os.environ['LATER'] = '1'")
    (tmp_path / "second_import.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(rank, "PROGRAMS", {"a": "a_program"})
    monkeypatch.setattr(rank.os, "environ", {"RAYLAUNCH_TEST": "1"})
    for name in ("a_program", "first_import", "second_import"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    resolved = launch_of(LaunchConfig.default(), ModelShape("none", 0, 0, 0, 0), "a")
    environment = {"OF_SPARE": "yes"}
    return RankSpec(**vars(resolved), rank=0, local_rank=0, group="g", bind_host="::1", environment=environment)


def test_it_imports_waits_and_becomes_the_rank_that_it_is_told_to_be(spec: RankSpec) -> None:
    spare = rank.RankBase(spec, stands_by=True)
    assert repr(spare) == "g/standby"
    assert spare.prepare("2,3") > 0
    assert {"a_program", "first_import", "second_import"} <= set(sys.modules)
    assert rank.os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    waiting = threading.Thread(target=spare.stand_by)
    waiting.start()
    assert waiting.is_alive()
    spare.adopt(replace(spec, rank=1, group="h"))
    waiting.join(5)
    assert not waiting.is_alive()
    assert repr(spare) == "h/rank1"
    assert spare.boot(("2,3", 1)) is None
    assert spare.health().rank == 1
    assert spare.health().activity == "runs as rank 1 with yes None", "what it was started with is what counts"
    assert spare.spec.device_index == 1


def test_one_that_is_adopted_while_it_imports_leaves_the_rest_to_its_rank(spec: RankSpec) -> None:
    spare = rank.RankBase(spec, stands_by=True)
    spare.adopt(spec)
    spare.prepare("")
    assert "a_program" in sys.modules
    assert "first_import" not in sys.modules


def test_it_must_not_hold_memory_of_a_gpu(spec: RankSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "open_contexts", lambda: [0, 1])
    with pytest.raises(RankFault, match="its imports have opened a CUDA context on GPU 0, 1"):
        rank.RankBase(spec, stands_by=True).prepare("0,1")


def test_contexts_are_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    from raylaunch_actors import contexts

    def state(index: int, flags: object, active: object) -> int:
        active._obj.value = index  # type: ignore[attr-defined]
        return 0 if index < 2 else 101

    monkeypatch.setattr(contexts.ctypes, "CDLL", lambda name: types.SimpleNamespace(cuDevicePrimaryCtxGetState=state))
    assert contexts.open_contexts() == [1]
    monkeypatch.undo()
    assert contexts.open_contexts() == [], "without a driver, or before anybody has called it"
