"""An event loop on a thread of its own: everything of SGLang's tokenizer manager must run on one loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

CLOSE_S = 5.0


class LoopThread:
    """Runs coroutines that other threads hand to it.

    Args:
        new_loop: makes the loop, on the thread.
    """

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop], name: str) -> None:
        self._new_loop = new_loop
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Returns when coroutines are taken."""
        self._thread.start()
        self._ready.wait()

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
        """Cancels what still runs and ends the thread. May be called more than once, from any other thread."""
        if self._thread.is_alive():
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
