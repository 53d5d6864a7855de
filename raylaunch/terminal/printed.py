"""Results on standard output, which may be unable to show a character, be full, closed, or read no further."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress

from raylaunch.errors import ConfigError
from raylaunch.terminal.outcome import ReaderLeft, Unwritten


def say(text: str, end: str = "\n") -> None:
    """Prints a result now; a character that the encoding does not have is printed as a question mark.

    Raises:
        ReaderLeft: it is read no further.
        Unwritten: it cannot be written; holds the text, which is not lost then.
    """
    out = sys.stdout
    if out is None:
        raise Unwritten(f"standard output is closed; this was to be written there:\n{text}")
    encoding = getattr(out, "encoding", None) or "utf-8"
    try:
        out.write((text + end).encode(encoding, "replace").decode(encoding))
        out.flush()
    except OSError as error:
        _write_no_more()
        if error.errno == errno.EPIPE:
            raise ReaderLeft from None
        why = error.strerror or error
        raise Unwritten(f"standard output cannot be written: {why}; this was to be written there:\n{text}") from None


def deliver(text: str, *files: Callable[[], object]) -> None:
    """Prints a result and writes its files, each also where another cannot be written. Raises :class:`Unwritten`."""
    with ExitStack() as then:
        for write in reversed(files):
            then.callback(write)
        say(text)


def require_stdout() -> None:
    """Finds out before a launch that nothing could be printed. Raises :class:`ConfigError`."""
    if sys.stdout is None:
        raise ConfigError("standard output", "closed", "must be open: the result is printed there")


def require_stdin() -> None:
    """Finds out before a launch that nothing could be read. Raises :class:`ConfigError`."""
    if sys.stdin is None:
        raise ConfigError("standard input", "closed", "must be open: it is read")


def open_missing_streams() -> None:
    """Takes the numbers of standard streams that this process was started without: otherwise the first files and
    sockets that are opened would have them, and get what processes print that are started later."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _write_no_more() -> None:
    """What is still buffered would be tried again when Python ends, with a traceback."""
    with suppress(OSError, ValueError):
        number = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
