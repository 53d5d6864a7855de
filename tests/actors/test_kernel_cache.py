"""The folder of compiled kernels on a node: what counts as one, copies that are whole, one builder at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from raylaunch_actors import kernel_cache
from raylaunch_actors.kernel_cache import Building, Cached, folder_of, holding, pack, unpack

from tests.busy import patient

HOLDS = "import raylaunch; from raylaunch_actors.kernel_cache import Building; "
HOLDS += "one = Building({!r}, 'a'); print(one.begin(9), flush=True); input()"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = folder_of(str(tmp_path))
    for name in ("triton/AB/k.cubin", "triton/AB/__grp__k.json", "tvm-ffi/one/lib.so"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_what_is_not_finished_is_no_kernel(folder: Path, tmp_path: Path) -> None:
    for name in ("tvm-ffi/one/.lock", "triton/AB/tmp.pid", "inductor/x.lock", "triton/tmp.tmp.1_2", "a.1234.part"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "link").symlink_to(folder / "tvm-ffi/one/lib.so")
    Building(str(tmp_path), "a").begin(0.0)
    found = holding(str(tmp_path))
    assert found.files == {"triton/AB/k.cubin": 17, "triton/AB/__grp__k.json": 23, "tvm-ffi/one/lib.so": 18}
    assert holding(str(tmp_path / "elsewhere")).files == {}


def test_another_set_of_versions_or_machine_has_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = holding(str(tmp_path)).key
    assert holding(str(tmp_path / "other")).key == key
    with monkeypatch.context() as patch:
        patch.setattr(kernel_cache, "package_version", lambda name: "9.9")
        assert holding(str(tmp_path)).key != key
        assert not holding(str(tmp_path)).files
    monkeypatch.setattr(kernel_cache.platform, "machine", lambda: "riscv64")
    assert holding(str(tmp_path)).key != key


def test_a_copy_is_the_same_and_takes_no_place(folder: Path, tmp_path: Path) -> None:
    library = folder / "tvm-ffi/one/lib.so"
    library.chmod(0o755)
    os.utime(library, ns=(1_700_000_000_123_456_789,) * 2)
    there = folder_of(str(tmp_path / "there"))
    (there / "triton/AB").mkdir(parents=True)
    (there / "triton/AB/k.cubin").write_bytes(b"mine")
    files = pack(str(tmp_path), [*holding(str(tmp_path)).files, "gone meanwhile"])
    assert unpack(str(tmp_path / "there"), files) == 2
    assert unpack(str(tmp_path / "there"), files) == 0
    assert (there / "triton/AB/k.cubin").read_bytes() == b"mine"
    stat = (there / "tvm-ffi/one/lib.so").stat()
    assert (stat.st_mode & 0o777, stat.st_mtime_ns) == (0o755, 1_700_000_000_123_456_789)
    assert not list(there.rglob("*.part"))


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/raylaunch-out"])
def test_nothing_is_written_elsewhere(name: str, tmp_path: Path) -> None:
    assert unpack(str(tmp_path / "root"), [Cached(name, 0o600, 0, b"x")]) == 0
    assert not [one for one in tmp_path.rglob("*") if one.is_file()]
    assert not Path("/tmp/raylaunch-out").exists()


def test_nothing_is_left_of_a_copy_that_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(str(tmp_path), [Cached("triton/k.cubin", 0o600, 0, b"x")])
    assert not [one for one in tmp_path.rglob("*") if one.is_file()]


def test_one_builds_and_the_others_find_it_built(tmp_path: Path) -> None:
    root, first = str(tmp_path), Building(str(tmp_path), "a")
    assert first.begin(0.0) < 1
    assert Building(root, "b").begin(0.0) < 1, "what needs other kernels does not wait"
    second = Building(root, "a")
    waited: list[float] = []
    thread = threading.Thread(target=lambda: waited.append(second.begin(30)))
    thread.start()
    time.sleep(0.5)
    assert not waited
    first.end()
    thread.join(patient(5))
    assert 0.4 < waited[0] < patient(5)
    assert Building(root, "a").begin(0.0) == 0.0
    second.end()


def test_nodes_of_one_group_that_share_the_folder_build_together(tmp_path: Path) -> None:
    one, two, three = (Building(str(tmp_path), "a") for _ in range(3))
    assert one.begin(30, "tiny-1") < 1
    assert two.begin(30, "tiny-1") < patient(1)
    assert 0.3 <= three.begin(0.3, "tiny-2") < patient(2)
    two.end()
    assert three.done
    one.end()


def test_who_dies_or_takes_long_is_not_waited_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS.format(str(tmp_path))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as builder:  # type: ignore[call-overload]
        assert builder.stdout.readline()
        late = Building(str(tmp_path), "a")
        assert 0.3 <= late.begin(0.3) < patient(2)
        builder.kill()
        builder.wait()
    assert Building(str(tmp_path), "a").begin(5) < patient(1), "it has built nothing that others could rely on"
