"""Child processes: ended for certain, and what they said last."""

from __future__ import annotations

import subprocess
from pathlib import Path


def end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Asks a child to end, kills it if it has not after ``patience_s``, and returns when it is gone."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_lines(log: Path, count: int) -> str:
    """The end of a log; "" if it is empty or cannot be read."""
    try:
        return "\n".join(log.read_text(errors="replace").strip().splitlines()[-count:])
    except OSError:
        return ""
