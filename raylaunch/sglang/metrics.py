"""SGLang's Prometheus metrics: its processes leave them in a folder that one engine's share, ``/metrics`` adds them up.

SGLang's launcher does the same with a variable that it sets for good; here it is gone with the engine.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from raylaunch.errors import ConfigError
from raylaunch.sglang.arguments import METRICS_VARIABLE

_taken = threading.Event()


class SharedMetrics:
    """Has this process keep new Prometheus metrics in a folder; ``close`` ends that. One per process: prometheus_client
    and SGLang register their names once and for all."""

    def __init__(self) -> None:
        self._before: tuple[str | None, object] | None = None

    def open(self, folder: Path) -> None:
        """Call after Ray was started, whose processes would leave theirs in the folder too. Raises ConfigError."""
        from prometheus_client import values

        if _taken.is_set():
            text = "another engine of this process has shown SGLang's metrics; leave it out, or use a new process"
            raise ConfigError("engine.sglang.args.enable_metrics", True, text)
        _taken.set()
        self._before = (os.environ.get(METRICS_VARIABLE), values.ValueClass)
        os.environ[METRICS_VARIABLE] = str(folder)
        # It looks at the variable only when it is imported, which Ray has done by now.
        values.ValueClass = values.MultiProcessValue()

    def close(self) -> None:
        """May be called more than once, and without ``open``."""
        if self._before is None:
            return
        from prometheus_client import values

        (variable, values.ValueClass), self._before = self._before, None
        if variable is None:
            os.environ.pop(METRICS_VARIABLE, None)
        else:
            os.environ[METRICS_VARIABLE] = variable
