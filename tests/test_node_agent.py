"""What counts as ended: a process whose memory is free again."""

from __future__ import annotations

import subprocess
import sys
import time

from actors.node_agent import NodeAgent, process_state, threads_of

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
        while process_state(process.pid) != "Z" and time.monotonic() < end:
            time.sleep(0.02)
        assert (process_state(process.pid), threads_of(process.pid)) == ("Z", 2)
        assert NodeAgent().process_states([process.pid]) == {process.pid: "Z"}
    finally:
        process.kill()
    end = time.monotonic() + 10
    while NodeAgent().process_states([process.pid]) and time.monotonic() < end:
        time.sleep(0.02)
    assert NodeAgent().process_states([process.pid]) == {}  # not waited for: a zombie, which holds nothing
    process.wait()
    assert process_state(process.pid) == ""
