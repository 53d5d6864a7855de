"""What an operator's pages read of the group: asked for beside the request path, at most once a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from raylaunch.engine import EngineBase
from raylaunch.engine.health import Health

FRESH_S = 1.0
T = TypeVar("T")


class GroupWatch:
    """The group's health for those who look at it often. One thread asks, so askers never pile up.

    Args:
        engine: asked with ``health()``; started or not.
        clock: seconds, monotonic.
    """

    def __init__(self, engine: EngineBase, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine = engine
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raylaunch-group-watch")
        self._asked: Health | None = None
        self._asked_at = 0.0

    async def run(self, function: Callable[[], T]) -> T:
        """Runs a function that may call :meth:`health` on the watching thread and returns what it returns."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def health(self) -> Health:
        """Readiness of this moment with the ranks' answers of the last second. Blocks up to a second; never raises."""
        now = self.engine.health(ask_ranks=False)
        asked = self._asked
        if asked is None or asked.condition != now.condition or self._clock() - self._asked_at >= FRESH_S:
            try:
                asked = self.engine.health(ask_ranks=True)
            except Exception:  # Ray may be gone altogether: then no rank has answered, and that is what is shown
                asked = now
            self._asked, self._asked_at = asked, self._clock()
        pairs = zip(now.replicas, asked.replicas, strict=True)
        replicas = tuple(own.with_ranks(one.ranks) for own, one in pairs)
        return replace(now.with_ranks(asked.ranks), replicas=replicas)
