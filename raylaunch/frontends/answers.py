"""Waiting for a request's chunks, in a thread or on an event loop, and joining them."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator

from raylaunch.errors import RaylaunchError
from raylaunch.frontends.base import Listener, Running, TakesRequests
from raylaunch.frontends.requests import Chunk, Completion

Start = Callable[[Listener], Running]
"""Submits a request whose chunks go to the listener."""


class Waiter:
    """A caller that blocks for its request's chunks."""

    def __init__(self, frontend: TakesRequests, start: Start) -> None:
        self._frontend = frontend
        self._arrived: queue.SimpleQueue[Chunk | RaylaunchError] = queue.SimpleQueue()
        self._request = start(self._arrived.put)

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            item = self._arrived.get()
            if isinstance(item, RaylaunchError):
                raise item
            yield item
            if item.finish_reason is not None:
                return

    def completion(self) -> Completion:
        """Waits for the whole answer."""
        try:
            return joined(list(self), self._request.prompt_tokens)
        finally:
            self.close()

    def close(self) -> None:
        """The caller leaves."""
        self._frontend.forget(self._request)


class AsyncWaiter:
    """A caller that awaits its request's chunks. Made on the event loop that it is used on."""

    def __init__(self, frontend: TakesRequests, start: Start) -> None:
        self._frontend = frontend
        self._arrived = asyncio.Queue[Chunk | RaylaunchError]()
        loop = asyncio.get_running_loop()
        self._request = start(lambda item: loop.call_soon_threadsafe(self._arrived.put_nowait, item))

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while True:
            item = await self._arrived.get()
            if isinstance(item, RaylaunchError):
                raise item
            yield item
            if item.finish_reason is not None:
                return

    async def completion(self) -> Completion:
        """Waits for the whole answer."""
        try:
            return joined([chunk async for chunk in self], self._request.prompt_tokens)
        finally:
            self.close()

    def close(self) -> None:
        """The caller leaves."""
        self._frontend.forget(self._request)


def joined(chunks: list[Chunk], prompt_tokens: int) -> Completion:
    """The whole answer that the chunks make."""
    text = "".join(chunk.text for chunk in chunks)
    ids = tuple(token for chunk in chunks for token in chunk.token_ids)
    logprobs = None
    if any(chunk.logprobs is not None for chunk in chunks):
        logprobs = tuple(one for chunk in chunks for one in chunk.logprobs or ())
    last, prompt = chunks[-1], chunks[0].prompt_logprobs
    finish = last.finish_reason or "abort"
    return Completion(last.request_id, text, ids, finish, prompt_tokens, logprobs, last.matched, prompt)
