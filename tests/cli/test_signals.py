"""Signals at any moment of a command: code 130, a line that says so, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

MARK = "RAYLAUNCH_TEST_OF_SIGNALS"
START_S, END_S = 120.0, 60.0
ODD = ("Fatal", "Traceback", "SIGTERM received", "SIGABRT", "Stack (most recent call first)", "Exception ignored")
ENDS = ("interrupted\n", "interrupted; everything that was started has been given back\n")


@pytest.fixture
def folder() -> Iterator[Path]:
    """For temporary files of a command and of its Ray, whose sockets must have short names."""
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp", ignore_cleanup_errors=True) as one:
        yield Path(one)


class Command:
    """A command with a folder of its own for what is temporary, and all processes that have come of it."""

    def __init__(self, folder: Path, *arguments: str, ignores: signal.Signals | None = None) -> None:
        self.folder = folder
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raylaunch", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "TMPDIR": str(folder), MARK: str(folder)},
            preexec_fn=None if ignores is None else lambda: signal.signal(ignores, signal.SIG_IGN) and None,
        )

    def await_(self, moment: Callable[[], bool]) -> None:
        end = time.monotonic() + START_S
        while not moment():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end
            time.sleep(0.005)

    def has(self, name: str) -> bool:
        """Whether a process of that name has come of it."""
        try:
            return any(name in one.name() for one in psutil.Process(self.process.pid).children(recursive=True))
        except psutil.Error:
            return False

    def token(self) -> bool:
        return any(self.folder.glob("raylaunch-auth-*/token"))

    def family(self) -> list[psutil.Process]:
        found = []
        for one in psutil.process_iter():
            try:
                if one.environ().get(MARK) == str(self.folder) and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
            except psutil.Error:
                continue
        return [one for one in found if one.pid != self.process.pid]

    def ended(self) -> tuple[int, str]:
        """Its code and what it said, once nothing of it is left."""
        try:
            _, said = self.process.communicate(timeout=END_S)
        finally:
            self.process.kill()
        end = time.monotonic() + 5
        while (left := self.family()) and time.monotonic() < end:
            time.sleep(0.1)
        assert left == []
        assert not list(self.folder.glob("raylaunch-*"))
        return self.process.returncode, said


def require_interrupted(command: Command) -> None:
    code, said = command.ended()
    assert code == 130, said
    assert not [word for word in ODD if word in said], said
    assert said.endswith(ENDS), said


MOMENTS: dict[str, Callable[[Command], bool]] = {
    "the command is there": lambda command: bool(signal_is_caught(command.process.pid, signal.SIGTERM)),
    "the token is written": Command.token,
    "gcs_server runs": lambda command: command.has("gcs_server"),
    "raylet runs": lambda command: command.has("raylet"),
    "a rank runs": lambda command: command.has("ray::Rank"),
}


def signal_is_caught(pid: int, number: signal.Signals) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "after_s", "number"),
    [
        ("the command is there", 0.0, signal.SIGTERM),
        ("the command is there", 0.3, signal.SIGINT),
        ("the command is there", 1.0, signal.SIGHUP),
        ("the token is written", 0.0, signal.SIGTERM),
        ("gcs_server runs", 0.0, signal.SIGTERM),
        ("gcs_server runs", 0.5, signal.SIGINT),
        ("raylet runs", 0.0, signal.SIGQUIT),
        *(("raylet runs", step * 0.15, signal.SIGTERM) for step in range(14)),
        ("raylet runs", 0.6, signal.SIGHUP),
        ("a rank runs", 0.0, signal.SIGTERM),
        ("a rank runs", 1.5, signal.SIGTERM),
    ],
)
def test_a_signal_while_it_starts(moment: str, after_s: float, number: signal.Signals, folder: Path) -> None:
    command = Command(folder, "generate", "--prompt", "1+1=", "--no-report")
    command.await_(lambda: MOMENTS[moment](command))
    time.sleep(after_s)
    command.process.send_signal(number)
    require_interrupted(command)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("serve", "--port", "0"), ("eval", "--data", "sums-heldout"), ("bench", "launch")]
)
def test_two_signals_while_ray_starts(arguments: tuple[str, ...], folder: Path) -> None:
    command = Command(folder, *arguments)
    command.await_(lambda: command.has("raylet"))
    command.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    if command.process.poll() is None:
        command.process.send_signal(signal.SIGHUP)
    require_interrupted(command)


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_of_a_server_drains_it_unless_it_was_started_by_nohup(ignored: bool, folder: Path) -> None:
    command = Command(folder, "serve", "--port", "0", ignores=signal.SIGHUP if ignored else None)
    lines = []
    assert command.process.stderr is not None
    while "serving" not in (line := command.process.stderr.readline()):
        assert line, lines
        lines.append(line)
    command.process.send_signal(signal.SIGUSR1)  # says where it is, and goes on
    command.process.send_signal(signal.SIGHUP)
    if ignored:
        time.sleep(2)
        assert command.process.poll() is None
        command.process.send_signal(signal.SIGTERM)
    code, said = command.ended()
    assert code == 0, said
    assert f"{'SIGTERM' if ignored else 'SIGHUP'}: no new requests" in said
    assert "most recent call first" in said


PROGRAM = """
import os, signal, sys, threading, time
from raylaunch import Engine, LaunchConfig

def interrupt():
    import psutil
    while not any(child.name() == "raylet" for child in psutil.Process().children()):
        time.sleep(0.01)
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))

before = signal.getsignal(signal.SIGTERM)
threading.Thread(target=interrupt).start()
try:
    with Engine(LaunchConfig.default()):
        print("started")
except (KeyboardInterrupt, SystemExit) as error:
    print(type(error).__name__, signal.getsignal(signal.SIGTERM) is before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "raised"), [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", "SystemExit")])
def test_an_engine_that_is_interrupted_gives_everything_back(number: str, raised: str, folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, number],
        capture_output=True,
        text=True,
        env={**environment, "TMPDIR": str(folder)},
        timeout=START_S,
    )
    assert done.stdout == f"{raised} True\n", done.stderr
    assert not list(folder.glob("raylaunch-*"))
