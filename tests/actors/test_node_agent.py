"""What counts as ended: a process whose memory is free again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from raylaunch_actors.node_agent import KillCount, NodeAgentBase, oom_kills
from raylaunch_actors.process_state import born, process_state, threads_of

# The first thread ends by the system call alone, so that the process lives on in its second thread.
LEADER_ENDS = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
time.sleep(0.2)
ctypes.CDLL(None).syscall(60 if platform.machine() == "x86_64" else 93, 0)
"""


def test_a_process_whose_first_thread_has_ended_is_still_there() -> None:
    process = subprocess.Popen([sys.executable, "-c", LEADER_ENDS])
    try:
        end = time.monotonic() + 10
        while process_state(process.pid)[0] != "Z" and time.monotonic() < end:
            time.sleep(0.02)
        state, since = process_state(process.pid)
        assert (state, threads_of(process.pid)) == ("Z", 2)
        assert NodeAgentBase().process_states({process.pid: since}) == {process.pid: "Z"}
    finally:
        process.kill()
    end = time.monotonic() + 10
    while NodeAgentBase().process_states({process.pid: since}) and time.monotonic() < end:
        time.sleep(0.02)
    assert NodeAgentBase().process_states({process.pid: since}) == {}  # not waited for: a zombie, which holds nothing
    process.wait()
    assert process_state(process.pid) == ("", "")


def test_a_number_that_is_anothers_by_now_is_neither_seen_nor_killed() -> None:
    """On a host that starts many processes and threads; a thread's number is found in /proc, too."""
    agent, other = NodeAgentBase(), subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    thread = threading.get_native_id()
    try:
        long_ago = str(int(process_state(other.pid)[1]) - 1)
        assert agent.process_states({other.pid: long_ago, thread: long_ago}) == {}
        agent.kill({other.pid: long_ago})
        assert agent.native_stacks(other.pid, long_ago, ()) == ""
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.3)  # SIGUSR1 would have ended it, too
        since = process_state(other.pid)[1]
        assert set(agent.process_states({other.pid: since, os.getpid(): born()})) == {other.pid, os.getpid()}
        agent.kill({other.pid: since})
        assert other.wait(10) == -signal.SIGKILL
    finally:
        other.kill()


def test_only_recent_kills_count() -> None:
    kills = KillCount()
    assert kills.recent(100.0, 7) == 0  # before this agent was there
    assert kills.recent(110.0, 7) == 0
    assert kills.recent(111.0, 8) == 1
    assert kills.recent(120.0, 9) == 2
    assert kills.recent(125.0, 9) == 2
    assert kills.recent(127.0, 9) == 1
    assert kills.recent(300.0, 9) == 0


def test_a_kill_between_two_distant_looks_counts() -> None:
    kills = KillCount()
    kills.recent(0.0, 0)
    assert kills.recent(1000.0, 1) == 1


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 0),
        ({"proc/vmstat": "pgfault 12\noom_kill 5\n"}, 5),
        ({"proc/vmstat": "oom_kill 5", "cgroup/memory.events": "oom 3\noom_kill 2\noom_group_kill 0\n"}, 2),
        (
            {
                "proc/vmstat": "oom_kill 5",
                "proc/self/cgroup": "0::/user/job\n",
                "cgroup/memory.events": "oom_kill 2",
                "cgroup/user/job/memory.events": "oom_kill 1",
            },
            1,
        ),
        ({"proc/self/cgroup": "0::/outside/of/this/container\n", "cgroup/memory.events": "oom_kill 2"}, 2),
        ({"proc/self/cgroup": "4:memory:/a\n", "proc/vmstat": "oom_kill 5"}, 5),
    ],
)
def test_kills_are_counted_as_near_to_the_ranks_as_can_be(tmp_path: Path, files: dict[str, str], count: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert oom_kills(tmp_path / "proc", tmp_path / "cgroup") == count
