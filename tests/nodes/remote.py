"""The tests' end of :mod:`tests.nodes.driver`: starts it, reads what it says, tells it what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class RemoteDriver:
    """A driver process, killed at the end.

    Args:
        popen: starts a command where the driver is to run, with ``subprocess.Popen``'s options.
        folder: where its standard error goes.
        settings: of its launch.
    """

    def __init__(self, popen: Callable[..., subprocess.Popen[bytes]], folder: Path, *settings: str) -> None:
        self.errors = folder / "driver.err"
        command = [sys.executable, "-u", "-m", "tests.nodes.driver", *settings]
        with self.errors.open("wb") as err:
            self.process = popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err)

    def __enter__(self) -> RemoteDriver:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)

    def hear(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """The next line of a kind with these values; others before it are passed over, but for errors."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if said["kind"] == kind and all(said[name] == value for name, value in wanted.items()):
                return said
            assert said["kind"] != "error", said["text"]
        raise AssertionError(f"it never said {kind!r}; its errors: {self.errors.read_text()[-3000:]}")

    def tell(self, word: str) -> None:
        """Sends a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()
