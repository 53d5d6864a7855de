"""Imports that are short, and the hand-over of what Ray has given to one process to another that imports already."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raylaunch_actors import preload

PROGRAM = preload.__file__
WORKER = """
import json, os, sys
told = {"pid": os.getpid(), "arguments": sys.argv[1:], "folder": os.getcwd(), "variable": os.environ.get("GIVEN"),
        "imported": "colorsys" in sys.modules, "first": sys.path[0]}
print(json.dumps(told), flush=True)
sys.exit(7)
"""
HOMELESS = """
import pwd
def unknown(user): raise KeyError(user)
pwd.getpwuid = unknown
from raylaunch_actors import kernel_cache, preload
from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError
from raylaunch.model import hub
from raylaunch.sglang import arguments
arguments.installed_folder, arguments.misfit = (lambda: "sglang"), (lambda folder: [])
try:
    arguments.check_sglang(LaunchConfig.default(["engine.kind=sglang"]))
except ConfigError as error:
    assert error.key == "engine.sglang.cache_dir", error
else:
    raise AssertionError("SGLang has nowhere to keep what it compiles")
assert hub.cached("a/b", None) is None
preload.keep_bytecode()
import kept_module
print(kernel_cache.holding(None).files, kept_module.VALUE)
"""
KEEPING = """
import sys
from pathlib import Path
from raylaunch_actors import preload
preload.BYTECODE = Path(sys.argv[1])
preload.keep_bytecode()
preload.keep_bytecode()
import kept_module
print(sorted(preload.KeepsBytecode.kept), kept_module.VALUE, kept_module.__cached__)
"""


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False, env=os.environ | more, timeout=60)


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    file = tmp_path / "worker.py"
    file.write_text(WORKER)
    return file


def started(name: Path, *modules: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, PROGRAM, "import", str(name), *modules], stdin=subprocess.PIPE)
    end = time.monotonic() + 20
    while not name.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return process


def test_a_process_that_imports_becomes_the_worker(tmp_path: Path, worker: Path) -> None:
    process = started(tmp_path / "0", "no_such_module", "colorsys")
    done = run(sys.executable, "-S", "-E", PROGRAM, "join", str(tmp_path / "0"), str(worker), "--x=1", GIVEN="yes")
    assert process.wait(20) == 7
    told = {"pid": process.pid, "arguments": ["--x=1"], "folder": os.getcwd(), "variable": "yes", "imported": True}
    assert done.returncode == 0, done.stderr
    assert done.stdout == preload.json.dumps({**told, "first": str(tmp_path)}) + "\n", "its output is the worker's"


def test_without_such_a_process_ray_gets_an_ordinary_worker(tmp_path: Path, worker: Path) -> None:
    done = run(sys.executable, "-S", "-E", PROGRAM, "join", str(tmp_path / "gone"), str(worker), "--x=1")
    assert done.returncode == 7
    assert preload.json.loads(done.stdout)["imported"] is False


def test_it_ends_with_whoever_has_started_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    processes = [started(folder / name, "colorsys") for name in ("0", "1")]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(20) for process in processes] == [0, 0]
    assert not folder.exists(), "what a driver that was killed could not remove"


def test_bytecode_is_kept_where_it_may_not_lie_beside_its_source(tmp_path: Path) -> None:
    source, kept = tmp_path / "source", tmp_path / "kept"
    source.mkdir()
    (source / "kept_module.py").write_text("VALUE = 'before'")
    path = {"PYTHONPATH": os.pathsep.join([str(source), *sys.path]), "PYTHONDONTWRITEBYTECODE": ""}
    cached = f"{source}/__pycache__/kept_module.{sys.implementation.cache_tag}.pyc"
    closed = {**path, "PYTHONDONTWRITEBYTECODE": "1"}
    assert run(sys.executable, "-c", KEEPING, str(kept), **closed).stdout == f"[] before {cached}\n"
    assert Path(f"{kept}{cached}").is_file()
    assert not Path(cached).exists()
    assert run(sys.executable, "-c", KEEPING, str(kept), **closed).stdout == f"['{cached}'] before {cached}\n"
    (source / "kept_module.py").write_text("VALUE = 'since then'")
    assert run(sys.executable, "-c", KEEPING, str(kept), **path).stdout == f"[] since then {cached}\n"
    assert Path(cached).is_file(), "beside its source, where it may be"
    assert not Path(f"{kept}{cached}").exists()


def test_short_imports_leave_collections_as_they_were_or_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "keep_bytecode", lambda: None)
    monkeypatch.setattr(preload, "NOT_USED", ("colorsys",))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    try:
        with preload.short_imports(last=False):
            assert not gc.isenabled()
            assert preload.importlib.util.find_spec("colorsys") is None
        assert gc.isenabled()
        assert preload.importlib.util.find_spec("colorsys") is not None
        gc.disable()
        with preload.short_imports(last=False):
            pass
        assert not gc.isenabled()
        with preload.short_imports():
            pass
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.enable()


def test_a_function_that_keeps_what_it_returns_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("keeps_much.py").write_text("kept = []\ndef much():\n    kept.append(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    preload.import_all(["keeps_much", "no_such_module:much", "keeps_much:much", "keeps_much:of_another_version"])
    assert sys.modules["keeps_much"].kept == [1]
    preload.import_all(["keeps_much:much"], lambda: False)
    assert sys.modules.pop("keeps_much").kept == [1]


def test_without_a_home_nothing_is_kept(tmp_path: Path) -> None:
    """As in a container whose user has no entry in /etc/passwd."""
    source, folder = tmp_path / "source", tmp_path / "folder"
    for one in (source, folder):
        one.mkdir()
    (source / "kept_module.py").write_text("VALUE = 7\n")
    more = {"PYTHONPATH": os.pathsep.join([str(source), *sys.path]), "PYTHONDONTWRITEBYTECODE": "1"}
    env = {name: value for name, value in os.environ.items() if name != "HOME"} | more
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS], capture_output=True, text=True, check=False, env=env, cwd=folder, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "{} 7\n"), done.stderr
    assert not list(folder.iterdir())
