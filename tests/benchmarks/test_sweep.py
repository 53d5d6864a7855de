"""Whole sweeps on CPU ranks: side by side, with cells that fail, interrupted, killed and resumed."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raylaunch.benchmarks.sglang import is_mapped
from raylaunch.benchmarks.sweep.lines import NAME, read_lines
from raylaunch.startup.preflight import SHARED_MEMORY
from tests.busy import patient
from tests.cli.test_signals import Command
from tests.nodes.test_driver_death import LATE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EIGHT = """
model: tiny-cpu
settings: {tp: 1, capture.enabled: false, deadlines.connect: 200}
grid: {engine.threads: [1, 2, 3, 4, 5, 6]}
cells:
  - {tp: 2}
  - {tp: 2, faults: [{action: raise, rank: 1, at: load}]}
measure: {prefill: {tokens: [4, 8], repeat: 2}}
starts: 1
side_by_side: 2
"""
SOME = """
model: tiny-cpu
settings: {tp: 1, capture.enabled: false, deadlines.connect: 200}
grid: {engine.threads: %s}
measure: launch
starts: 1
side_by_side: 2
"""
PATIENCE_S = 400.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """For a command's temporary files, and its results; Ray's sockets must have short names."""
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp", ignore_cleanup_errors=True) as one:
        yield Path(one)


def left_in_shared_memory(before: set[Path]) -> list[Path]:
    """What is new there, and nobody's, as other tests may run beside this one."""
    new = set(SHARED_MEMORY.iterdir()) - before
    return [file for file in new if not any(is_mapped(file, one) for one in Path("/proc").glob("[0-9]*"))]


def start(folder: Path, text: str, *options: str) -> Command:
    (folder / "sweep.yaml").write_text(text)
    return Command(folder, "bench", "sweep", str(folder / "sweep.yaml"), "--output", str(folder / "out"), *options)


def written(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "out" / NAME)


def await_(command: Command, done: Any) -> None:
    end = time.monotonic() + patient(PATIENCE_S)
    while not done():
        assert command.process.poll() is None, command.process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def cells_running(command: Command) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(command.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if "raylaunch.benchmarks.sweep.cell" in one.cmdline():
                found.append(one)
    return found


def finish(command: Command) -> tuple[int, str, str]:
    out, err = command.process.communicate(timeout=patient(PATIENCE_S))
    assert nothing_of(command)
    return command.process.returncode, out, err


def nothing_of(command: Command, within_s: float = 10.0) -> bool:
    """Whether nothing of it runs any more, but for agents of a Ray that was killed, which look for it for a minute."""
    end = time.monotonic() + patient(within_s)
    while (left := [one for one in command.family() if not late(one)]) and time.monotonic() < end:
        time.sleep(0.1)
    print(left)
    return not left


def late(process: psutil.Process) -> bool:
    try:
        return process.name() in LATE
    except psutil.Error:
        return True


def test_eight_cells_two_at_a_time_interrupted_and_resumed(folder: Path) -> None:
    before = set(SHARED_MEMORY.iterdir())
    command = start(folder, EIGHT)
    most = 0

    def three_are_done() -> bool:
        nonlocal most
        most = max(most, len(cells_running(command)))
        return len(written(folder)) >= 3 and len(cells_running(command)) == 2

    await_(command, three_are_done)
    assert most == 2
    first = written(folder)
    command.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    command.process.send_signal(signal.SIGINT)
    interrupted = time.monotonic()
    code, said = command.ended()  # no process and no temporary folder of its own is left
    print(f"ended {time.monotonic() - interrupted:.1f} s after the second signal, with {len(first)} lines")
    assert (code, said.endswith("interrupted; everything that was started has been given back\n")) == (130, True), said
    assert written(folder) == first

    command = start(folder, EIGHT)
    code, out, err = finish(command)
    lines = written(folder)
    assert (code, lines[: len(first)]) == (1, first), err
    assert len({line["cell"] for line in lines}) == len(lines) == 8, err
    (failed,) = [line for line in lines if line["error"]]
    assert failed["error"] == "LaunchError [LOAD] rank 1 failed: ValueError: raised on purpose"
    assert failed["settings"]["faults"]
    assert "raised on purpose" in (folder / "out" / failed["log"]).read_text()
    for line in lines:
        if line is not failed:
            assert [one["tokens"] for one in line["figures"]["prefill"]] == [4, 8]
            assert len(line["ranks"]) == line["settings"]["parallel.tensor_parallel_size"]
            assert line["versions"]["torch"]
    assert sum(bool(line["beside"]) for line in lines) >= 6
    assert "7 of 8 starts measured, 1 cell failed" in out
    assert left_in_shared_memory(before) == []

    again = start(folder, EIGHT)  # nothing is due, so there is no Ray either
    code, out, _ = finish(again)
    assert (code, written(folder)) == (1, lines)
    drawn = importlib.util.find_spec("matplotlib") is not None  # of the extra `bench`
    assert (folder / "out" / "prefill-median.png").is_file() == drawn


def test_a_sweep_that_is_killed_leaves_nothing_and_goes_on(folder: Path) -> None:
    command = start(folder, SOME % [1, 2, 3, 4])
    await_(command, lambda: written(folder) and len(cells_running(command)) == 2)
    first = written(folder)
    command.process.kill()
    command.process.communicate(timeout=30)
    assert nothing_of(command, 20.0)
    with (folder / "out" / NAME).open("ab") as file:
        file.write(b'{"cell": "torn')  # as if it had been writing
    code, _, err = finish(start(folder, SOME % [1, 2, 3, 4]))
    lines = written(folder)
    assert (code, lines[: len(first)]) == (0, first), err
    assert len({line["cell"] for line in lines}) == len(lines) == 4


def test_a_cell_that_crashes_or_hangs_is_its_own_error(folder: Path) -> None:
    """The process of one is killed, that of another is stopped, so that it answers nothing; both at once."""
    text = SOME % [1, 2] + "cells: [{engine.threads: 3, tp: 3}]\ndeadline: 100\n"
    command = start(folder, text)
    await_(command, lambda: len(cells_running(command)) == 2)
    crashed, hung = cells_running(command)
    time.sleep(5)
    crashed.kill()
    hung.suspend()
    code, out, err = finish(command)
    impossible, *others = [line["error"] for line in written(folder)]
    assert code == 1, err
    assert "must divide the model's num_attention_heads" in impossible
    assert sorted(others) == sorted(others, key=lambda error: "was not done" in error)
    assert "was killed by SIGKILL at " in others[0]
    assert others[1].startswith("was not done within 100 s; it was at ")
    assert "3 cells failed" in out
    assert finish(start(folder, text.replace("tp: 3", "tp: 1"), "--retry-failed"))[0] == 0
    names = ("engine.threads", "parallel.tensor_parallel_size")
    errors = {tuple(line["settings"].get(name, 1) for name in names): line["error"] for line in written(folder)}
    assert errors == {(3, 3): impossible, (1, 1): None, (2, 1): None, (3, 1): None}
