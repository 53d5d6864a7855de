"""The event loop of SGLang's tokenizer managers: all that touches one of them must run on its loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

CLOSE_S = 5.0


class Loop:
    """A loop that others run, such as Ray Serve's of a replica. Runs coroutines that other threads hand to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = loop

    def start(self) -> None:
        """Returns when coroutines are taken."""

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine there."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Calls a function there, in the order of these calls. Does nothing once the loop is closed."""
        try:
            assert self.loop is not None
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return

    def close(self) -> None:
        """Once for each start: nothing is handed over any more."""


class LoopThread(Loop):
    """One on a thread of its own, from its first start to the last close.

    Args:
        new_loop: makes the loop, on the thread.
    """

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop], name: str) -> None:
        super().__init__()
        self._new_loop = new_loop
        self._users, self._lock = 0, threading.Lock()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """The last one cancels what still runs and ends the thread. From any other thread."""
        with self._lock:
            self._users -= 1
        if self._users == 0:
            self.soon(self._stop)
            self._thread.join(CLOSE_S)

    def _stop(self) -> None:
        assert self.loop is not None
        self.loop.stop()

    def _run(self) -> None:
        self.loop = self._new_loop()
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self._ready.set)
        try:
            self.loop.run_forever()
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
        finally:
            self.loop.close()
