"""The thread that Ray is started on and ended on. No signal interrupts it, and it stays as long as the session."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from raylaunch import ray_private


class RayThread:
    """Calls ``start`` at once and, when told to end, ``end``.

    A thread of its own, for two reasons. Python runs handlers of signals on the main thread, so nothing that they
    raise meets Ray half started or half ended. And Linux ends Ray's servers with the *thread* that has started them
    (https://github.com/ray-project/ray/pull/7150), which so may be any thread of the user's.
    """

    def __init__(self, start: Callable[[], object], end: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._start, self._end = start, end
        self._up, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="raylaunch-ray", daemon=True)
        self._thread.start()

    def up(self, timeout_s: float) -> bool:
        """Waits that long for the start; whether it has succeeded or failed, which ``error`` tells."""
        return self._up.wait(timeout_s)

    def over(self, timeout_s: float) -> bool:
        """Has the session ended once it is started, and waits that long; whether it has."""
        self._over.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with ray_private.signals_left_alone():
                self._start()
        except BaseException as error:
            self.error = error
        self._up.set()
        self._over.wait()
        with contextlib.suppress(Exception, SystemExit):  # Ray's, of a cluster that is gone
            self._end()
