"""Signals that tell a command, or a server, to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""The exit code of a command that was told to end, by whatever signal."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """Those that mean the end. A SIGHUP that is ignored, as ``nohup`` has it, stays ignored."""
    hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, *hang_up


@contextmanager
def answered_by(handler: Any) -> Iterator[None]:
    """Has ``handler`` answer the signals within the block; without effect on threads other than the main one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, handler) for one in stop_signals()}
    try:
        yield
    finally:
        for one, previous in before.items():
            signal.signal(one, previous if previous is not None else signal.SIG_DFL)


_OF_A_COMMAND = threading.Event()


def leave_when_told() -> None:
    """This process is a command: a signal ends it on the spot, for as long as there is nothing to give back."""
    _OF_A_COMMAND.set()
    for one in stop_signals():
        signal.signal(one, _leave)


def of_a_command() -> bool:
    """Whether this process is a command of raylaunch, which may end without its interpreter's end."""
    return _OF_A_COMMAND.is_set()


def _leave(number: int, frame: FrameType | None) -> None:
    say("interrupted")
    os._exit(INTERRUPTED)


def say(line: str) -> None:
    """Writes to standard error from within a handler: ``print`` could be what the signal has interrupted."""
    as_json = getattr(sys.stderr, "line", None)  # of raylaunch.logs, which is not loaded yet
    with suppress(OSError):  # its terminal is gone, which SIGHUP says
        os.write(2, f"{as_json(line) if as_json else line}\n".encode())
