"""The detokenizer's process as its parent sees it: started, watched, ended with proof."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raylaunch.sglang.children import kill_once_stopped, last_lines
from raylaunch.sglang.detokenizer import READY
from raylaunch.sglang.listeners import Listeners

LOG_TAIL_LINES = 20


class DetokenizerProcess:
    """One process of :mod:`raylaunch.sglang.detokenizer`.

    Args:
        log: file that gets what it prints.
        environment: variables that it gets beside this process's.
        on_death: told in one sentence when it ends and :meth:`close` was not called; on a thread of its own.
        stopped_s: seconds for which it may be stopped, as by a debugger; then it is killed.
        listeners: ports that it takes over, as far as they are its own; None if there are none.
    """

    def __init__(
        self,
        log: Path,
        on_death: Callable[[str], None],
        environment: Mapping[str, str],
        stopped_s: float,
        listeners: Listeners | None = None,
    ) -> None:
        self._listeners = listeners
        self._log, self._on_death, self._environment, self._stopped_s = log, on_death, environment, stopped_s
        self._was_stopped = False
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = False
        self._told = threading.Event()

    def start(self) -> None:
        """Starts it: it imports SGLang, and then waits for :meth:`configure`."""
        root = str(Path(__file__).parents[2])  # wherever this package was imported from
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "raylaunch.sglang.detokenizer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._environment, "PYTHONPATH": path},
                pass_fds=tuple(self._listeners.ports.values()) if self._listeners else (),
                start_new_session=True,  # a Ctrl-C must let running requests end first
            )
        for watch in (self._watch, self._watch_stops):
            threading.Thread(target=watch, args=(self._process,), name="raylaunch-detokenizer", daemon=True).start()

    def configure(self, server_args: Any, port_args: Any, variables: Mapping[str, str]) -> None:
        """Gives it its arguments, and variables that are known only now. It binds its socket then."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(pickle.dumps((server_args, port_args, variables, self._listeners)))
            self._process.stdin.flush()
        except OSError:
            return  # it is dead: the watching thread tells why

    def wait(self, timeout_s: float) -> bool:
        """Waits until it works, or has ended and ``on_death`` was told. Returns whether either is so."""
        return self._told.wait(timeout_s)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def close(self) -> None:
        """Ends it and waits until it is gone. May be called more than once."""
        self._closing = True
        process = self._process
        if process is None:
            return
        process.kill()  # it has nothing to put in order
        process.wait()
        if process.stdin is not None:
            try:
                process.stdin.close()
            except OSError:
                return

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:  # to the end: a full pipe would stop it
                if line == READY:
                    self._told.set()
        code = process.wait()
        if not self._closing:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            how = f"was stopped (SIGSTOP) for {self._stopped_s:g} s, and killed" if self._was_stopped else how
            self._on_death(f"SGLang's detokenizer {how}{self._last_words()}")
        self._told.set()

    def _watch_stops(self, process: subprocess.Popen[bytes]) -> None:
        def on_stop() -> None:
            self._was_stopped = True

        kill_once_stopped(process, self._stopped_s, on_stop)

    def _last_words(self) -> str:
        said = last_lines(self._log, LOG_TAIL_LINES)
        return f":\n{said}" if said else ""
