"""The file of a sweep's results: a line of JSON for each start, written when it has ended, for good."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylaunch.errors import ConfigError
from raylaunch.terminal.outcome import signals_held, written
from raylaunch.values.json_text import from_json

NAME = "results.jsonl"


def read_lines(file: Path) -> list[dict[str, Any]]:
    """What is written there. A last line that is not whole, of a sweep that was killed, is no line yet.

    Raises :class:`ConfigError` if it cannot be read, or holds something else.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError("output", str(file.parent), f"cannot be read: {error.strerror or error}") from None
    lines = []
    for number, text in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            line = from_json(text)
        except ValueError:
            line = None
        if not _is_result(line):
            raise ConfigError("output", str(file), f"line {number} is no result of a sweep: take it out")
        lines.append(line)
    return lines


def _is_result(line: Any) -> bool:
    return isinstance(line, dict) and {"cell", "start", "error"} <= line.keys() and isinstance(line["start"], int)


class ResultsFile:
    """The file, for one sweep at a time: a lock that the system takes back with its process.

    Attributes:
        folder: that it is in.
        lines: all that is written there.
    Raises:
        ConfigError: it cannot be written or locked, or another sweep writes there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError("output", str(folder), f"cannot be written: {error.strerror or error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.lines = read_lines(self._path)
            self._file.truncate(self._path.read_bytes().rfind(b"\n") + 1)
        except BlockingIOError:
            self._file.close()
            raise ConfigError("output", str(folder), "another sweep is writing its results there") from None
        except OSError as error:  # such as of a filesystem over the network without locks, or a device
            self._file.close()
            raise ConfigError(
                "output", str(folder), f"cannot be locked or written: {error.strerror or error}"
            ) from None
        except BaseException:
            self._file.close()
            raise

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes one line, which is there once this returns. Raises :class:`Unwritten`."""
        data = json.dumps(line).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        with signals_held(), written("output", self._path):
            try:
                while data:  # a disk that becomes full takes a part of it
                    data = data[self._file.write(data) :]
                os.fsync(self._file)
            except OSError:
                self._file.truncate(size)
                raise
        self.lines.append(dict(line))

    def close(self) -> None:
        """Gives the lock back."""
        self._file.close()
