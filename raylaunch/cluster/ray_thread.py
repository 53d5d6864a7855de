"""The thread that Ray is started on and ended on. No signal interrupts it, and it stays as long as the session."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator

import ray._raylet

TAKEN = "_ZN3ray6RayLog36is_failure_signal_handler_installed_E"
"""``ray::RayLog::is_failure_signal_handler_installed_``"""


class RayThread:
    """Calls ``start`` at once and, when told to end, ``end``.

    A thread of its own, for two reasons. Python runs handlers of signals on the main thread, so nothing that they
    raise meets Ray half started or half ended. And Linux ends Ray's servers with the *thread* that has started them,
    which so may be any thread of the user's.
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
            with signals_left_alone():
                self._start()
        except BaseException as error:
            self.error = error
        self._up.set()
        self._over.wait()
        with contextlib.suppress(Exception, SystemExit):  # Ray's, of a cluster that is gone
            self._end()


@contextlib.contextmanager
def signals_left_alone() -> Iterator[None]:
    """Keeps the C++ side of Ray from taking signals while it starts in this process, and from what it does at its end.

    It would put a handler under Python's for which SIGTERM is a crash: a dump, and SIGABRT
    (https://github.com/ray-project/ray/pull/64830). At its end it would leave the system's own answer, so that a
    SIGTERM kills a process that still has something to give back. Ray has no setting for it, but asks itself whether
    the handlers are there already. Python's ``faulthandler``, which Ray turns on, still tells of real crashes.
    """
    taken = _handlers_taken()
    if taken is None or taken.value:  # another version of Ray, or a session of the user's that was there before
        yield
        return
    taken.value = True
    try:
        yield
    finally:
        taken.value = False


def _handlers_taken() -> ctypes.c_bool | None:
    try:
        return ctypes.c_bool.in_dll(ctypes.CDLL(ray._raylet.__file__), TAKEN)
    except (OSError, ValueError):
        return None
