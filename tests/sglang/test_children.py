"""Child processes that are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest

from raylaunch.sglang.children import kill_once_stopped
from tests.busy import patient


@pytest.fixture
def child():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_child_that_is_stopped_for_long_is_killed(child):
    """F25: whoever waits for it would wait for ever."""
    os.kill(child.pid, signal.SIGSTOP)
    began, told = time.monotonic(), []
    kill_once_stopped(child, 0.5, lambda: told.append(child.poll()))
    assert told == [None], "before it is gone, so that whoever waits for that knows why"
    assert 0.4 < time.monotonic() - began < patient(3)
    assert child.wait(5) == -signal.SIGKILL


def test_a_child_that_goes_on_in_time_is_left_alone(child):
    told = []
    watch = threading.Thread(target=kill_once_stopped, args=(child, 1.0, lambda: told.append(child)))
    watch.start()
    for _ in range(3):
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(0.4)
        os.kill(child.pid, signal.SIGCONT)
        time.sleep(0.3)
    assert child.poll() is None
    child.terminate()
    watch.join(5)
    assert not watch.is_alive()
    assert told == []
