"""The priority of a process's threads, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from raylaunch.protocol import NICENESS

PROGRAM = """
import os, threading
from actors import priority
os.nice(15)
started, done = threading.Event(), threading.Event()
def other():
    started.set()
    done.wait()
    print(os.nice(0))
thread = threading.Thread(target=other)
thread.start()
started.wait()
priority.restore()
done.set()
thread.join()
print(os.nice(0))
"""


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


@pytest.mark.parametrize(("chosen", "niceness"), [({}, "0"), ({NICENESS: "15"}, "15")])
def test_every_thread_is_as_important_as_others_unless_the_cluster_says_otherwise(chosen, niceness):
    if not chosen and not may_become_less_nice():
        niceness = "15"
    environment = {name: value for name, value in os.environ.items() if name != NICENESS} | chosen
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [niceness, niceness]
