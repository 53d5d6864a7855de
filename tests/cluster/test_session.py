"""How workers of a private cluster are started, and what is said of one that cannot be joined."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import ray._private.ray_constants as constants
from ray._private.runtime_env import uv_runtime_env_hook
from ray._private.worker import _maybe_modify_runtime_env

from raylaunch import ray_private
from raylaunch.background import Background
from raylaunch.cluster import session
from raylaunch.cluster.ray_thread import RayThread
from raylaunch.cluster.session import RaySession, _joining_failed
from raylaunch.errors import LaunchError
from raylaunch.ray_private import UV, workers_without_uv
from raylaunch.startup.shadows import _entries


@pytest.fixture
def below_a_project(monkeypatch, tmp_path):
    """As under ``uv run`` in a folder below the project's."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    command = ["uv", "run", "raylaunch", "generate"]
    monkeypatch.setattr(uv_runtime_env_hook, "_get_uv_run_cmdline", lambda: command)


def test_a_private_clusters_workers_are_not_started_by_uv(below_a_project):
    with workers_without_uv():
        assert _maybe_modify_runtime_env(None, False) is None
    assert getattr(constants, UV) is True


def test_a_cluster_that_uv_cannot_be_used_with_is_named_with_the_remedy(below_a_project):
    with pytest.raises(RuntimeError) as caught:
        _maybe_modify_runtime_env(None, False)
    said = _joining_failed("10.0.0.1:6379", caught.value)
    assert said.startswith("the Ray cluster at '10.0.0.1:6379' cannot be joined from here: Your /")
    assert f"{UV}=0" in said
    assert _joining_failed("x:1", ConnectionError("nobody")) == "no Ray cluster at 'x:1': nobody"


@pytest.mark.slow
def test_the_folders_that_ray_has_told_its_workers(tmp_path, monkeypatch):
    if ray.is_initialized():
        ray.shutdown()
    monkeypatch.chdir(tmp_path)
    expected = _entries()
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100 << 20)
    try:
        os.chdir(Path("/"))
        assert _entries() == expected

        @ray.remote
        def workers_path() -> list[str]:
            import sys

            return sys.path

        found = ray.get(workers_path.remote())
        assert [os.path.realpath(one) for one in found[: len(expected)]] == list(expected)
    finally:
        ray.shutdown()


def test_a_start_that_nobody_waits_for_ends_by_itself_and_is_waited_for_by_the_next(monkeypatch):
    monkeypatch.setattr(session, "LEAVE_START_S", 0.1)
    monkeypatch.setattr(session.RaySession, "_end", lambda self, started: ended.append(started))
    ended: list[bool] = []
    started = threading.Event()
    one = session.RaySession(started=True, _token_folder="there")
    with pytest.raises(LaunchError, match="shut down"):
        one._start(lambda: started.wait(30), lambda: True)
    assert (one.started, one._token_folder, one._thread) == (False, "", None), (
        "what is to be undone is no more this one's"
    )
    one.close()
    with pytest.raises(LaunchError, match="shut down"):
        session._await_late_start(lambda: True)
    assert not ended
    assert not session.abandoned()
    started.set()
    session._await_late_start(lambda: False)
    assert ended == [True]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("after_s", [0.3, 1.0, 2.0, 3.0])
def test_a_process_outlives_a_start_of_ray_that_it_has_left(after_s):
    """Ray's core ends a process whose head was killed before it connected, a minute later."""
    program = f"""
import time, psutil
from raylaunch.cluster import session
from raylaunch.errors import LaunchError

session.LEAVE_START_S = 0.0
left = time.monotonic() + {after_s}
try:
    session.enter("local", 1, "left", lambda: time.monotonic() > left).close()
except LaunchError as error:
    assert "shut down" in str(error), error
session._await_late_start(lambda: False)
time.sleep(70)
assert not [one for one in psutil.Process().children() if one.name() in ("raylet", "gcs_server")]
session.enter("local", 1, "next").close()
print("lives")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280)
    assert done.stdout.endswith("lives\n"), done.stderr[-3000:]


STARTED_TOO_SLOWLY = """
import logging, psutil, ray
from ray._private import services
from raylaunch.cluster import session
from raylaunch.errors import LaunchError

logging.basicConfig()
real, tries = services.get_node, []

def get_node(*args):  # what Ray waits for, with its processes there already
    tries.append(args)
    if len(tries) <= {slow}:
        raise ValueError("The current node timed out during startup.")
    return real(*args)

services.get_node = get_node
def heads(): return [one for one in psutil.Process().children(recursive=True) if one.name() in ("raylet", "gcs_server")]
try:
    one = session.enter("local", 1, "slow")
    assert len(heads()) == 2, heads()
    one.close()
except LaunchError as error:
    print(error.summary)
psutil.wait_procs(heads(), 20)
print(len(tries), len(heads()))
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("slow", "said"), [(1, "2 0\n"), (2, "timed out during startup.\n2 0\n")])
def test_a_ray_that_is_not_up_in_its_own_time_is_started_once_more(slow, said):
    program = [sys.executable, "-c", STARTED_TOO_SLOWLY.format(slow=slow)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=200)
    assert done.stdout.endswith(said), done.stdout + done.stderr[-3000:]
    assert "Ray is started once more: The current node timed out" in done.stderr


def test_who_notices_that_ray_is_shut_down_waits_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's core ends the process where a reference is dropped between its own end and Ray's forgetting it."""
    worker = SimpleNamespace(connected=False, core_worker=object(), worker_id=b"other")
    monkeypatch.setattr(ray._private.worker, "global_worker", worker)
    monkeypatch.setattr(ray, "is_initialized", lambda: worker.connected)
    said = Background(RaySession(_worker=b"mine").lost)
    assert not said.done(0.2)
    del worker.core_worker
    assert said.done(2)
    assert "Ray was shut down in this process" in said.result()


class EndedWorker:
    """Ray's, whose core has ended: what asks it ends the process."""

    connected, core_worker = False, object()

    @property
    def worker_id(self) -> bytes:
        raise SystemExit(1)


def test_a_shutdown_that_comes_to_no_end_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal has ended it in its midst."""
    worker = EndedWorker()
    monkeypatch.setattr(ray._private.worker, "global_worker", worker)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_private, "SHUTDOWN_S", 0.3)
    left, waits = RaySession(_worker=b"mine"), []
    for _ in range(2):
        began = time.monotonic()
        assert "Ray was shut down in this process" in left.lost()
        waits.append(time.monotonic() - began)
    assert waits[0] > 0.25
    assert waits[1] < 0.1


def test_a_session_that_was_left_asks_nothing_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its group has found Ray's head gone: Ray's own end would wait for it."""
    monkeypatch.setattr(session, "_ABANDONED", threading.Event())
    monkeypatch.setattr(session.atexit, "unregister", lambda _: None)
    asked = threading.Event()
    left = RaySession(started=True, _thread=RayThread(lambda: None, asked.set))
    left.abandon()
    left.close()
    assert not asked.wait(0.1)


def test_two_who_close_a_session_both_return_when_it_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that starts an engine, and the one that a signal has told to end it: the process ends then."""
    monkeypatch.setattr(session.private_cluster, "remove_token", lambda folder, in_use: Path(folder).rmdir())
    (folder := tmp_path / "token").mkdir()
    ended = threading.Event()
    one = RaySession(started=True, _token_folder=str(folder), _worker=b"another", _thread=RayThread(int, ended.wait))
    first, second = Background(one.close), Background(one.close)
    assert not first.done(0.1)
    assert not second.done(0.1)
    ended.set()
    for closing in (first, second):
        assert closing.done(2)
        assert not folder.exists()
        closing.result()
