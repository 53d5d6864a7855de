"""Log lines as text or as JSON, one object a line, of the driver and of the ranks.

A record may say more of itself than its words: ``log.error("lost", extra=about(fault="F07", rank=1))``.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from raylaunch.config import LogConfig
    from raylaunch.errors import LaunchError

OURS = ("raylaunch", "raylaunch_actors", "sglang")
"""Loggers that speak from the level that is asked for; of all others warnings are the least that is shown."""
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def about(**facts: Any) -> dict[str, Any]:
    """What a record says of itself in JSON, such as ``rank``, ``launch`` or ``fault``; None is left out."""
    return {"about": {name: value for name, value in facts.items() if value is not None}}


def about_error(error: LaunchError, **facts: Any) -> dict[str, Any]:
    """The same of an error: its fault's number, phase and rank."""
    return about(fault=error.code, phase=error.phase or None, rank=error.rank, replica=error.replica, **facts)


def set_up(settings: LogConfig, stream: TextIO | None = None, **facts: Any) -> None:
    """Has this process log as ``settings`` say; where they say nothing, as it does by itself. The last call counts.

    Args:
        stream: standard error, unless told otherwise.
        facts: what every record in JSON says.
    """
    as_json = settings.format == "json"
    if not as_json and settings.level is None:
        return
    level = (settings.level or "info").upper()
    handler = _Handler(stream)
    handler.setFormatter(JsonFormatter(facts) if as_json else logging.Formatter(TEXT))
    handler.setLevel(level)
    root = logging.getLogger()
    root.handlers = [one for one in root.handlers if not isinstance(one, _Handler)] + [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    for name in OURS if settings.level else OURS[:2]:
        logging.getLogger(name).setLevel(level)


class _Handler(logging.StreamHandler):
    """Ours, to be known when it is replaced."""


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time, level, logger, message, what it says of itself, and its traceback."""

    def __init__(self, facts: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._facts = facts or {}

    def format(self, record: logging.LogRecord) -> str:
        said = dict(self._facts, **getattr(record, "about", {}))
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            said["stack"] = record.stack_info
        return json_line(record.getMessage(), record.levelname.lower(), record.name, record.created, **said)


def json_line(message: str, level: str, logger: str, when: float | None = None, **said: Any) -> str:
    """One line, without its end. ``when`` is in seconds since the epoch; None is now."""
    time = datetime.now(UTC) if when is None else datetime.fromtimestamp(when, UTC)
    head = {"time": time.isoformat(timespec="milliseconds"), "level": level, "logger": logger, "message": message}
    return json.dumps(head | said, ensure_ascii=False, default=str)


class JsonLines:
    """A text stream that makes a JSON line of every line: of what is printed, and not logged.

    Args:
        stream: where lines go. What is logged goes there by itself.
    """

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self, stream: TextIO) -> None:
        self.stream, self._rest, self._lock = stream, "", threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                if line.strip():
                    self.stream.write(self.line(line) + "\n")
        return len(text)

    def line(self, text: str) -> str:
        """One line of ours as JSON, without its end."""
        return json_line(text.strip(), "info", "raylaunch")

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def log_command(settings: LogConfig) -> None:
    """The same as :func:`set_up` for a command's own process, whose standard error is its own too."""
    if settings.format == "json" and sys.stderr is not None and not isinstance(sys.stderr, JsonLines):
        sys.stderr = JsonLines(sys.stderr)
    set_up(settings, sys.stderr.stream if isinstance(sys.stderr, JsonLines) else None)
