"""Child processes: ended for certain, or when they are stopped for long, and what they said last."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from raylaunch.values.signal_names import signal_name

POLL_S = 0.1


def end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Asks a child to end, kills it if it has not after ``patience_s``, and returns when it is gone."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill_once_stopped(process: subprocess.Popen[bytes], patience_s: float, on_stop: Callable[[], object]) -> None:
    """Waits for a child's end; once it was stopped (SIGSTOP) for ``patience_s``, calls ``on_stop`` and kills it."""
    from raylaunch_actors.process_watch import Followed

    try:
        followed = Followed(process.pid)
    except OSError:  # it has ended, or this system does not show it
        return
    while process.poll() is None:
        now = time.time()
        followed.poll(now)
        if followed.seen is not None and not followed.seen.ended and now - followed.seen.when >= patience_s:
            on_stop()
            process.kill()
        time.sleep(POLL_S)
    followed.close()


def how_ended(code: int) -> str:
    """The end of a child in words, from its return code."""
    return f"ended with code {code}" if code >= 0 else f"was killed by {signal_name(-code)}"


def last_lines(log: Path, count: int) -> str:
    """The end of a log; "" if it is empty or cannot be read."""
    try:
        return "\n".join(log.read_text(errors="replace").strip().splitlines()[-count:])
    except OSError:
        return ""
