"""The priority of a process's threads, in a process of its own, whatever that of the tests is."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from raylaunch_actors.priority import BEHIND, SWITCH_S
from raylaunch_actors.rank import RankBase

from raylaunch.protocol import NICENESS, NICENESS_IS_OURS

PROGRAM = """
import os, sys, threading
from raylaunch_actors import priority
os.nice(3)
settled = threading.Event()
shown = [0, 0, 0]
def show(index):
    settled.wait()
    shown[index] = os.nice(0)
earlier, later = (threading.Thread(target=show, args=(index,)) for index in (0, 2))
earlier.start()
priority.set_niceness(sys.argv[1])
shown[1] = os.nice(0)
later.start()
settled.set()
earlier.join()
later.join()
print(*shown)
"""
BEFORE = min(os.nice(0) + 3, 19)
AFTER = max(BEFORE, BEHIND)


def may_become_less_nice() -> bool:
    pid = os.fork()
    if pid == 0:
        os.nice(1)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        except PermissionError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("device", "chosen", "wanted"),
    [
        ("cuda", {}, [0, 0, 0]),
        ("cpu", {}, [BEFORE, AFTER, AFTER]),
        ("cuda", {NICENESS: "5"}, [BEFORE] * 3),
        ("cpu", {NICENESS: "0"}, [BEFORE] * 3),
        ("cpu", {NICENESS: "0", NICENESS_IS_OURS: "1"}, [BEFORE, AFTER, AFTER]),
    ],
)
def test_the_thread_before_the_rank_the_rank_and_those_it_starts(device, chosen, wanted):
    if device == "cuda" and not chosen and not may_become_less_nice():
        wanted = [BEFORE] * 3
    environment = {name: value for name, value in os.environ.items() if name not in (NICENESS, NICENESS_IS_OURS)}
    environment |= chosen
    command = [sys.executable, "-c", PROGRAM, device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [int(word) for word in done.stdout.split()] == wanted


def test_a_rank_that_serves_keeps_the_interpreter():
    before = sys.getswitchinterval()
    rank = RankBase.__new__(RankBase)
    released = []
    rank.gate = SimpleNamespace(finish=released.append)
    try:
        rank.finish("release")
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
        assert released == ["release"]
    finally:
        sys.setswitchinterval(before)
