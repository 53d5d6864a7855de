"""What a launch cannot work with on this machine is one message, with the remedy, before Ray starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError
from raylaunch.startup import preflight
from raylaunch.startup.preflight import folder_problem, ray_folder, space_problem, too_few, unwritable

PROGRAM = (
    "from raylaunch import LaunchConfig, ConfigError\n"
    "from raylaunch.startup.preflight import preflight\n"
    "try: preflight(LaunchConfig.default())\n"
    "except ConfigError as error: print(error)\n"
)
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def said(*before, **variables):
    """What is said in a process that is started by ``before``; "" if nothing is wrong."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR")} | variables
    command = [*map(str, before), sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_nothing_is_wrong_here():
    assert said() == ""


def test_spans_that_cannot_be_sent_are_told_and_no_obstacle(caplog):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
        patch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        preflight.preflight(LaunchConfig.default())
    (record,) = caplog.records
    assert record.getMessage().startswith("no spans are sent to http://c:4318: they go by http/protobuf, not by grpc")


def test_too_few_open_files():
    line = said("prlimit", "--nofile=64:64")
    assert line == (
        "ulimit -n = 64: allows 64 open files, and this launch needs 68 at least: raise it, such as with ulimit -n 8192"
    )


@pytest.mark.parametrize(
    ("ranks", "sglang", "files", "threads"), [(2, False, 68, 264), (4, False, 76, 328), (2, True, 128, 384)]
)
def test_what_a_launch_needs(ranks, sglang, files, threads, monkeypatch):
    for name, enough, key in (("open_files", files, "-n"), ("processes_left", threads, "-u")):
        with monkeypatch.context() as patch:
            patch.setattr(preflight, "open_files", lambda: None)
            patch.setattr(preflight, "processes_left", lambda: None)
            patch.setattr(preflight, name, lambda enough=enough: enough)
            preflight._require_limits(ranks, sglang=sglang)
            patch.setattr(preflight, name, lambda enough=enough: enough - 1)
            with pytest.raises(ConfigError, match=f"ulimit {key} = {enough - 1}: .* needs {enough} at least"):
                preflight._require_limits(ranks, sglang=sglang)


def test_a_soft_limit_is_raised_by_ray():
    assert said("prlimit", "--nofile=64:4096") == ""


@root
def test_too_few_processes():
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    line = said("prlimit", "--nproc=60:60", *nobody)
    assert line.startswith("ulimit -u = ")
    assert "more processes and threads, and this launch needs 264 at least: raise it" in line
    assert said("prlimit", "--nproc=60:60") == "", "root has no such limit"


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_with_too_long_a_name(name, tmp_path):
    line = said(**{name: str(tmp_path / ("x" * 60))})
    assert line.startswith(f"{name} = '{tmp_path}/xxx")
    assert "for the names of Ray's sockets: set RAY_TMPDIR to a short folder, such as /tmp" in line


def test_a_file_in_place_of_the_folder():
    folder = Path("/tmp") / f"rl-{os.getpid()}"
    folder.touch()
    try:
        line = said(RAY_TMPDIR=str(folder))
    finally:
        folder.unlink()
    assert line == (
        f"RAY_TMPDIR = '{folder}/ray': {folder} is no folder, so this user may write nothing in it: "
        "set RAY_TMPDIR to a folder where it may"
    )


@root
def test_a_folder_of_somebody_elses():
    folder = Path("/tmp") / f"rl-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        line = said("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", RAY_TMPDIR=str(folder))
    finally:
        folder.rmdir()
    assert f"this user may not write in {folder}: set RAY_TMPDIR to a folder where it may" in line


@root
@pytest.mark.parametrize(
    ("options", "right"),
    [
        ("size=1m", "1 MiB are free there, and Ray needs 64: make room, or set RAY_TMPDIR"),
        ("size=100m,nr_inodes=9", "files can be made there: make room, or set RAY_TMPDIR"),
        ("ro", "this user may not write in /mnt: set RAY_TMPDIR"),
    ],
)
def test_a_disk_that_is_full_or_cannot_be_written(options, right):
    mounted = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o {options} none /mnt && exec "$@"', "sh")
    if subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    assert right in said(*mounted, RAY_TMPDIR="/mnt")


@root
def test_shared_memory_that_cannot_be_written():
    mounted = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o mode=0755 none /dev/shm && exec "$@"', "sh")
    if subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    line = said(*mounted, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert line == "shared memory = '/dev/shm': this user may not write in /dev/shm: Ray keeps its objects there"


def test_a_cluster_that_is_joined_has_its_own(tmp_path):
    assert said("prlimit", "--nofile=64:64", RAY_ADDRESS="10.0.0.1:6379", RAY_TMPDIR="/proc") == ""


def test_where_objects_go_decides_how_much_room_is_needed(monkeypatch):
    monkeypatch.setattr(preflight, "SHARED_MEMORY", Path("/no/such/folder"))
    assert preflight.needed_bytes() == preflight.RAY_BYTES + preflight.OBJECT_STORE_BYTES
    free = shutil.disk_usage("/").free
    assert space_problem("/", free + (1 << 40)).endswith("or set RAY_TMPDIR to a folder elsewhere")
    assert space_problem("/", 1) == ""


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, ("RAY_TMPDIR", "/tmp/ray")),
        ({"TMPDIR": "/a"}, ("TMPDIR", "/a/ray")),
        ({"TMPDIR": "/a", "RAY_TMPDIR": "/b"}, ("RAY_TMPDIR", "/b/ray")),
    ],
)
def test_where_ray_keeps_its_files(monkeypatch, variables, found):
    import ray._common.utils as ray_utils

    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ray_folder() == found
    assert ray_utils.get_default_ray_temp_dir() == found[1]


def test_the_longest_name_that_ray_takes():
    pid = len(str(os.getpid()))
    room = 107 - len(f"/session_2026-01-31_23-59-59_123456_{'1' * pid}/sockets/plasma_store")
    assert folder_problem("/tmp/" + "x" * (room - 5)) == ""
    assert "too long by 1 bytes" in folder_problem("/tmp/" + "x" * (room - 4))
    assert "absolute path" in folder_problem("here/ray")


def test_limits_that_nobody_knows():
    assert too_few("open files", None, 5) == ""
    assert too_few("open files", 5, 5) == ""
    assert unwritable(Path("/tmp/not/there/yet")) == ""
