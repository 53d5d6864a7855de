"""What a launch shows while it goes on: a bar on a terminal, a line for each phase elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from raylaunch.protocol import Step

LOG_WIDTH = 120
NOTE_EVERY_S = 10.0


class Lenient:
    """A stream whose failures to write are nobody's concern: a launch does not end because nobody can see its bar."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stderr_console() -> Console:
    """Standard error: as wide as the terminal, or as a log line may be. Never raises ``OSError``."""
    file: Any = Lenient(sys.stderr) if sys.stderr is not None else None
    console = Console(file=file, stderr=True, highlight=False)
    return console if console.is_terminal else Console(file=file, stderr=True, highlight=False, width=LOG_WIDTH)


class LaunchProgress:
    """Shows the step of a launch. ``step`` is the engine's listener; the bar is gone when the block ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase = self._noted = ""
        self._began = self._noted_at = 0.0

    def __enter__(self) -> LaunchProgress:
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._start_bar()
        else:
            self._line("PLACE")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def step(self, step: Step, index: int, steps: int) -> None:
        """Told before each step: all ranks are on their way to it."""
        phase = step.phase.name
        if self._bar is not None and self._task is not None:
            what = str(step).removeprefix(phase).strip()
            self._bar.update(self._task, completed=index, total=steps, phase=phase, description=what)
        elif phase != self._phase:
            self._line(phase)
        self._phase = phase

    def note(self, text: str) -> None:
        """Told all the time what is going on within a step; "" is nothing. A log gets a line now and then."""
        if not text or text == self._noted:
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)
        elif time.monotonic() - self._noted_at >= NOTE_EVERY_S:
            self._line(text)
            self._noted_at = time.monotonic()
        self._noted = text

    def _line(self, phase: str) -> None:
        seconds = time.monotonic() - self._began
        self._console.print(f"{seconds:6.1f} s  {phase}", markup=False)

    def _start_bar(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[phase]:<8}", markup=False, style="bold"),
            BarColumn(30),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("Ray, placement group, actors", total=None, phase="PLACE")
        self._bar.start()
