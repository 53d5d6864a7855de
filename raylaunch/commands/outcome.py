"""How a command ends: its exit code, the message of an error, and what signals do meanwhile."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from raylaunch.errors import ConfigError, LaunchError, RequestError, RequestFailed

LAUNCH_FAILED, WRONG_USAGE, REQUEST_FAILED, INTERRUPTED = 1, 2, 3, 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Unwritten(Exception):
    """The work is done and its file could not be written, which nobody could know before: a disk that is full."""


@contextmanager
def written(option: str, file: Path) -> Iterator[None]:
    """Writes a result to ``file``. Raises :class:`Unwritten`, so print before what must not be lost."""
    try:
        yield
    except OSError as error:
        raise Unwritten(f"{option} = {str(file)!r}: cannot be written: {error.strerror or error}") from None


@contextmanager
def reported() -> Iterator[None]:
    """Runs a command's work: errors made on purpose and signals become a message and an exit code, not a traceback."""
    try:
        with _signals_interrupt():
            yield
    except (KeyboardInterrupt, SystemExit):  # the second is Ray's own answer to SIGTERM while it starts
        _end("interrupted; everything that was started has been given back", INTERRUPTED)
    except ConfigError as error:
        _end(f"ConfigError {error}", WRONG_USAGE)
    except LaunchError as error:
        _end(explain(error), LAUNCH_FAILED)
    except Unwritten as error:
        _end(str(error), LAUNCH_FAILED)
    except (RequestError, RequestFailed) as error:
        _end(f"{type(error).__name__} {error}", REQUEST_FAILED)


def explain(error: LaunchError) -> str:
    """All that is known of a failed launch, and its headline once more at the end: job logs keep their end."""
    text = str(error)
    last = error.headline().splitlines()[0]
    return text if text == last else f"{text}\n\n{last}"


def _end(message: str, code: int) -> None:
    with suppress(OSError):  # standard error is full, or read no further: the code still says it
        typer.echo(message, err=True)
    raise typer.Exit(code)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """The first SIGINT or SIGTERM is a KeyboardInterrupt; what undoes the launch is not interrupted by a second.

    One handler that remembers, not two: what is interrupted may put back the one that it has found, as the start of
    Ray does.
    """
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) > 1:
            _wait_for_the_end(number, frame)
        else:
            raise KeyboardInterrupt

    with _handlers(interrupt):
        yield


@contextmanager
def signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the end of the block: it gives back what must not be left."""
    seen: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        _wait_for_the_end(number, frame)

    with _handlers(hold):
        yield
    if seen:
        raise KeyboardInterrupt


@contextmanager
def _handlers(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, handler) for one in SIGNALS}
    try:
        yield
    finally:
        for one, previous in before.items():
            signal.signal(one, previous if previous is not None else signal.SIG_DFL)


def _wait_for_the_end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"shutting down, this takes a few seconds\n")  # print could be what the signal interrupted
