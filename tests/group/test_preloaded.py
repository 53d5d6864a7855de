"""Which workers of Ray's a process of this one's may become, and how many are started."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raylaunch import LaunchConfig
from raylaunch.group.preloaded import Preloaded, ProcessEnvironment, difference, process_environment, ranks_here
from tests.waiting import wait_until

MINE = ProcessEnvironment(
    ("net:[1]", "0::/"), "/env/bin/python", {"PATH": "/bin", "OMP_NUM_THREADS": "1", "TERM": "dumb"}
)


@pytest.mark.parametrize(
    ("raylet", "why"),
    [
        ({}, ""),
        ({"variables": {"PATH": "/bin", "TERM": "xterm", "RAY_X": "1"}}, ""),
        ({"variables": {"PATH": "/bin", "OMP_NUM_THREADS": "8"}}, ""),  # every rank is given it
        ({"variables": {"PATH": "/bin", "PYTHONBREAKPOINT": "ray.util.rpdb.set_trace"}}, ""),
        ({"variables": {"PATH": "/bin", "LD_LIBRARY_PATH": ""}}, ""),
        ({"variables": {"PATH": "/sbin", "TORCH_LOGS": "all"}}, "Ray has other variables: PATH, TORCH_LOGS"),
        ({"python": "/usr/bin/python3"}, "Ray runs /usr/bin/python3"),
        ({"spaces": ("net:[2]", "0::/")}, "Ray runs in other namespaces"),
    ],
)
def test_what_a_worker_must_have_in_common_with_this_process(raylet: dict[str, object], why: str) -> None:
    said = difference(MINE, replace(MINE, **raylet), {"OMP_NUM_THREADS": "1"})  # type: ignore[arg-type]
    assert said.startswith(why) if why else said == ""


def test_the_environment_is_read_of_any_process() -> None:
    mine = process_environment(os.getpid(), sys.executable)
    assert mine.variables["PATH"] == os.environ["PATH"]
    assert difference(mine, mine, {}) == ""
    with pytest.raises(OSError, match="No such file"):
        process_environment(1 << 30, sys.executable)


@pytest.mark.parametrize(
    ("changes", "gpus", "ranks"),
    [
        ((), 0, 0),
        ((), 1, 1),
        ((), 8, 4),
        (("engine.device=cpu",), 0, 4),
        (("parallel.nodes=2",), 8, 2),
    ],
)
def test_as_many_are_started_as_this_node_may_have_ranks(changes: tuple[str, ...], gpus: int, ranks: int) -> None:
    config = LaunchConfig.default(["parallel.tensor_parallel_size=4", "engine.device=auto", *changes])
    assert ranks_here(config, gpus) == ranks


PARENT = """
import ctypes, signal
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
open(__file__ + ".done", "w").close()
"""


def test_they_outlive_the_thread_that_has_started_them(tmp_path: Path) -> None:
    """SGLang's schedulers ask the kernel to be killed with their parent, which is the thread that has forked."""
    tmp_path.joinpath("dies_with_parent.py").write_text(PARENT)
    with ThreadPoolExecutor(1) as pool:
        one = pool.submit(Preloaded, 2, ("dies_with_parent",), {"PYTHONPATH": str(tmp_path)}, {}).result()
        wait_until(tmp_path.joinpath("dies_with_parent.py.done").exists, 30)
    processes = list(one._started.values())
    time.sleep(0.2)  # the pool's thread has ended
    codes = [process.poll() for process in processes]
    one.close()
    assert codes == [None, None]


def test_those_that_become_no_worker_are_ended() -> None:
    one = Preloaded(2, ("colorsys",), {}, {})
    processes = list(one._started.values())
    one.close()
    one.close()
    assert all(process.wait(10) is not None for process in processes)
    assert not one._folder.exists()


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), KeyboardInterrupt()])
def test_none_is_left_where_one_of_them_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    begun, popen, folders = list[subprocess.Popen[bytes]](), subprocess.Popen, list[Path]()

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        folders.append(Path(command[3]).parent)
        if begun:
            raise error
        begun.append(popen(command, **options))
        return begun[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(type(error)):
        Preloaded(2, ("colorsys",), {}, {})
    assert begun[0].wait(10) is not None
    assert not folders[0].exists()
