"""What the kernel says of processes that die, are gone or are stopped: seen at once, with the right signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from signal import Signals

import psutil
import pytest
from raylaunch_actors import process_watch
from raylaunch_actors.process_watch import ProcessWatch, Sighting

from tests.busy import patient

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")

# A process whose memory is mapped so often that the kernel needs over half a second to undo it.
SLOW_TO_DIE = """
import mmap, os, time
descriptor, size = os.memfd_create("much"), 1 << 28
os.ftruncate(descriptor, size)
maps = [mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE) for _ in range(16)]
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def news_of(watch: ProcessWatch, process: subprocess.Popen[bytes], patience_s: float = 60.0) -> Sighting:
    return watch.news(patience_s)[process.pid]


@pytest.mark.parametrize("number", [Signals.SIGKILL, Signals.SIGTERM, Signals.SIGHUP, Signals.SIGINT, Signals.SIGSEGV])
@pytest.mark.parametrize("reaped", [False, True], ids=["not waited for", "waited for"])
def test_a_signal_is_seen(number: Signals, reaped: bool, sleeper: subprocess.Popen[bytes]) -> None:
    watch = ProcessWatch()
    watch.follow([sleeper.pid])
    assert watch.seen() == {}
    began = time.time()
    if reaped:
        threading.Thread(target=sleeper.wait).start()
    sleeper.send_signal(number)
    seen = news_of(watch, sleeper)
    assert time.time() - began < patient(1)
    assert seen.ended
    assert began <= seen.when <= time.time()
    if not reaped or seen.status is not None:  # an old kernel tells only the parent, once it has been told
        assert (seen.status or 0) & 0x7F == number
    assert watch.seen()[sleeper.pid].ended


def test_an_exit_code_is_seen() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time, os; time.sleep(0.3); os._exit(3)"])
    watch = ProcessWatch()
    watch.follow([process.pid])
    assert news_of(watch, process).status == 3 << 8
    process.wait()


def test_f27_a_process_that_takes_long_to_die_is_seen_dying() -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW_TO_DIE], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
        watch = ProcessWatch()
        watch.follow([process.pid])
        killed = time.monotonic()
        process.kill()
        seen = news_of(watch, process)
        noticed = time.monotonic() - killed
        assert (seen.ended, seen.status) == (True, int(signal.SIGKILL))
        assert process.poll() is None, "it was to be seen before it is gone"
        process.wait()
        print(f"seen after {noticed:.3f} s, gone after {time.monotonic() - killed:.3f} s")
    assert noticed < patient(0.3)


def test_what_one_look_finds_has_one_time() -> None:
    """So that of two that ended at once neither seems to have been first."""
    watch, processes = ProcessWatch(), [subprocess.Popen(["sleep", "0.1"]) for _ in range(2)]
    for process in processes:
        watch._followed[process.pid] = process_watch.Followed(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    seen = watch.seen()
    assert len(seen) == 2
    assert len({one.when for one in seen.values()}) == 1
    for process in processes:
        process.wait()


def test_a_stopped_process_may_go_on(sleeper: subprocess.Popen[bytes]) -> None:
    watch = ProcessWatch()
    watch.follow([sleeper.pid])
    sleeper.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    stopped = watch.seen()[sleeper.pid]
    assert (stopped.ended, stopped.status) == (False, int(signal.SIGSTOP))
    sleeper.send_signal(signal.SIGCONT)
    time.sleep(0.1)
    assert watch.seen() == {}
    began = time.monotonic()
    sleeper.send_signal(signal.SIGSTOP)
    assert not news_of(watch, sleeper, patience_s=0.6).ended
    assert 0.5 < time.monotonic() - began < patient(2)
    sleeper.kill()
    assert news_of(watch, sleeper).status == int(signal.SIGKILL)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_meanwhile_ends_no_patience(
    hours: int, monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    clock, watch = time.time, ProcessWatch()
    watch.follow([sleeper.pid])
    began = time.monotonic()
    sleeper.send_signal(signal.SIGSTOP)
    while not watch.seen():
        time.sleep(0.01)
    monkeypatch.setattr(time, "time", lambda: clock() + hours * 3600)
    seen = news_of(watch, sleeper, patience_s=0.6)
    assert 0.6 <= seen.for_s <= time.monotonic() - began < 60


def test_a_process_that_is_gone_already_is_seen_to_be(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    watch = ProcessWatch()
    watch.follow([sleeper.pid])
    seen = news_of(watch, sleeper)
    assert (seen.ended, seen.status) == (True, None)


def test_without_descriptors_of_processes_the_state_alone_is_read(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    """As on an old kernel, or in a sandbox."""

    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    watch = ProcessWatch()
    watch.follow([sleeper.pid])
    sleeper.kill()
    assert news_of(watch, sleeper) == Sighting(True, int(signal.SIGKILL), watch.seen()[sleeper.pid].when)


def test_one_that_is_marked_before_it_says_why(sleeper: subprocess.Popen[bytes]) -> None:
    """A kernel marks a process as dying a moment before it writes down its status."""
    followed = process_watch.Followed(sleeper.pid)
    followed._ended(0, 1.0)
    followed._ended(9, 2.0)
    assert followed.seen == Sighting(True, 9, 1.0)
    followed._ended(None, 3.0)
    assert followed.seen == Sighting(True, 9, 1.0)
    followed.close()


def seconds_of(watch: ProcessWatch) -> float:
    """What the watch's thread has had of a processor."""
    assert watch._thread is not None
    (own,) = [one for one in psutil.Process().threads() if one.id == watch._thread.native_id]
    return own.user_time + own.system_time


def test_a_process_that_ended_well_and_is_not_waited_for_costs_nothing() -> None:
    process = subprocess.Popen(["sleep", "0.1"])
    watch = ProcessWatch()
    watch.follow([process.pid])
    assert news_of(watch, process).status == 0
    before = seconds_of(watch)
    time.sleep(0.4)
    assert seconds_of(watch) - before < 0.1  # a loop without a pause would take all of it, on a processor of its own
    process.wait()
    assert watch.seen()[process.pid].status == 0


def test_no_descriptor_is_left_open(sleeper: subprocess.Popen[bytes]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    watch = ProcessWatch()
    watch.follow([sleeper.pid])
    watch.follow([sleeper.pid])
    assert len(os.listdir("/proc/self/fd")) > before
    sleeper.kill()
    news_of(watch, sleeper)
    sleeper.wait()
    watch.seen()
    assert len(os.listdir("/proc/self/fd")) == before
