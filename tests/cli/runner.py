"""Runs the command line in this process, or as the command it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from typer.testing import CliRunner

from raylaunch.commands.app import app
from tests.busy import patient

LAUNCH_SECONDS = 100


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it printed."""

    code: int
    stdout: str
    stderr: str


def run(*arguments: str) -> Ran:
    """In this process: for whatever launches nothing."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def command(*arguments: str, before: Sequence[str] = (), umask: int = -1, **variables: str) -> subprocess.Popen[str]:
    """As a process of its own, that starts a private cluster; started by the command ``before`` if there is one."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | variables
    return subprocess.Popen(
        [*before, sys.executable, "-m", "raylaunch", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        umask=umask,
    )


def finish(process: subprocess.Popen[str]) -> Ran:
    """Waits for a process."""
    try:
        stdout, stderr = process.communicate(timeout=patient(LAUNCH_SECONDS))
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Ran(process.returncode, stdout, stderr)
