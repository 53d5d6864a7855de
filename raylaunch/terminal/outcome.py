"""How a command ends: its exit code, the message of an error, and what signals do meanwhile."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import typer

from raylaunch.errors import ConfigError, LaunchError, RequestError, RequestFailed
from raylaunch.logs import JsonLines, about, about_error
from raylaunch.startup.signals import INTERRUPTED, answered_by, say

log = logging.getLogger(__name__)

LAUNCH_FAILED, WRONG_USAGE, REQUEST_FAILED = 1, 2, 3
READ_NO_FURTHER = 141  # what shells show of a program that SIGPIPE ends, as most do when a pipe's reader has left


class Unwritten(Exception):
    """The work is done and its file could not be written, which nobody could know before: a disk that is full."""


class ReaderLeft(Unwritten):
    """Whoever read the output wants no more of it, such as ``head``: no error of anybody's."""


@contextmanager
def written(option: str, file: Path) -> Iterator[None]:
    """Writes a result to ``file``. Raises :class:`Unwritten`, so print before what must not be lost."""
    try:
        yield
    except OSError as error:
        raise Unwritten(f"{option} = {str(file)!r}: cannot be written: {error.strerror or error}") from None


@contextmanager
def reported() -> Iterator[None]:
    """Runs a command's work: errors made on purpose and interrupts become a message and an exit code, no traceback."""
    try:
        yield
    except KeyboardInterrupt:
        _end("interrupted; everything that was started has been given back", INTERRUPTED)
    except ConfigError as error:
        _end(f"ConfigError {error}", WRONG_USAGE)
    except LaunchError as error:
        _end(explain(error), LAUNCH_FAILED, error)
    except ReaderLeft:
        raise typer.Exit(READ_NO_FURTHER) from None
    except Unwritten as error:
        _end(str(error), LAUNCH_FAILED)
    except (RequestError, RequestFailed) as error:
        _end(f"{type(error).__name__} {error}", REQUEST_FAILED)


def explain(error: LaunchError) -> str:
    """All that is known of a failed launch, and its headline once more at the end: job logs keep their end."""
    text, last = str(error), last_line(error)
    return text if text == last else f"{text}\n\n{last}"


def last_line(error: LaunchError) -> str:
    """A failed launch in one line."""
    return error.headline().splitlines()[0]


def _end(message: str, code: int, error: LaunchError | None = None) -> None:
    with suppress(OSError):  # standard error is full, or read no further: the code still says it
        if isinstance(sys.stderr, JsonLines):
            said = about(exit_code=code) if error is None else about_error(error, exit_code=code, details=str(error))
            log.error(message if error is None else error.headline(), extra=said)
        else:
            typer.echo(message, err=True)
    raise typer.Exit(code)


@contextmanager
def interruptible() -> Iterator[None]:
    """For work that has something to give back: the first signal is a KeyboardInterrupt, and a second does not disturb
    what undoes the work. Outside, a signal ends a command at once. Import before what takes long to import: an
    exception may be dropped there.

    One handler that remembers, not two: what is interrupted may put back the one that it has found.
    """
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) > 1:
            _wait_for_the_end(number, frame)
        else:
            raise KeyboardInterrupt

    with answered_by(interrupt):
        try:
            yield
        except Exception as error:
            if seen:  # what was interrupted has made another error of it
                raise KeyboardInterrupt from error
            raise
        if seen:  # or has dropped it
            raise KeyboardInterrupt


@contextmanager
def signals_held() -> Iterator[None]:
    """Signals wait until the end of the block: it gives back what must not be left."""
    seen: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        _wait_for_the_end(number, frame)

    with answered_by(hold):
        yield
    if seen:
        raise KeyboardInterrupt


def _wait_for_the_end(number: int, frame: FrameType | None) -> None:
    say("shutting down, this takes a few seconds")
