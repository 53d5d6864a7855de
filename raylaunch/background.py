"""A function that runs while its caller goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

LOOK_S = 0.2


class Background:
    """A function that runs on its own thread; :meth:`result` waits for it and raises what it raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    @property
    def failed(self) -> bool:
        """Whether the function has raised."""
        return self._error is not None

    def raise_if_failed(self) -> None:
        """Raises what the function raised, if it has."""
        if self._error is not None:
            raise self._error

    def done(self, timeout_s: float) -> bool:
        """Waits that long for its end; whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def result(self, timeout_s: float | None = None) -> Any:
        """Waits for the function's value. Raises ``TimeoutError``."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError
        self.raise_if_failed()
        return self._value


def outlast(done: Callable[[float], bool], patience_s: float) -> bool:
    """Waits for ``done``, at most ``patience_s``, whatever handlers of signals raise meanwhile; returns whether it is.

    Args:
        done: waits that many seconds, and says whether there is no more to wait for.
    Raises:
        BaseException: the first that was raised meanwhile, when the wait is over.
    """
    end, interrupt = time.monotonic() + patience_s, None
    while True:
        try:
            while not (ended := done(LOOK_S)) and time.monotonic() < end:
                pass
            break
        except BaseException as error:
            interrupt = interrupt or error
    if interrupt is not None:
        raise interrupt
    return ended
