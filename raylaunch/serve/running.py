"""The one way from an HTTP request to the engine: tells an observer, says what was lost, cleans up."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from raylaunch.errors import ReplicaLost, RequestError, RequestFailed

if TYPE_CHECKING:
    from raylaunch.config import ServeConfig
    from raylaunch.engine import EngineBase
    from raylaunch.frontends.requests import Chunk
    from raylaunch.frontends.sampling import SamplingParams


class Observer(Protocol):
    """Is told what happens to one request, in this order; all on the event loop's thread.

    A request is one prompt and one choice: a batch of 3 prompts with ``n=2`` has 6 observers.
    """

    def started(self, endpoint: str, prompt_tokens: int) -> None:
        """Before it goes to the engine. ``endpoint`` is ``generate``, ``completions`` or ``chat``."""

    def first_token(self) -> None:
        """Its first tokens are there; :meth:`tokens` follows."""

    def tokens(self, count: int) -> None:
        """``count`` more tokens are there, the first ones included."""

    def finished(self, reason: str) -> None:
        """Always called, once. ``stop``, ``length``, ``abort`` (asked for), ``gone`` (the client left), ``refused``
        (the engine did not take it) or ``error``."""


@dataclass
class Pulse:
    """When the ranks last gave out tokens, on the monotonic clock."""

    at: float = 0.0


@dataclass(frozen=True)
class Serving:
    """What every endpoint works with.

    Attributes:
        observe: makes the observer of one request.
        created: when the server started, seconds since the epoch.
        running: the calls that the engine works on, and those that it is just asked to: one whose request id is in use
            is refused.
        pulse: when the ranks last gave out tokens.
    """

    engine: EngineBase
    settings: ServeConfig
    observe: Callable[[], Observer]
    created: int
    running: set[Call] = field(default_factory=set)
    pulse: Pulse = field(default_factory=lambda: Pulse())


@dataclass(frozen=True, eq=False)
class Call:
    """One choice that is asked of the engine: a prompt as token ids, already checked, and how to go on from it.

    Attributes:
        index: among the choices of its HTTP request.
        group: the id of the HTTP request, by which all its choices can be aborted.
    """

    index: int
    prompt: list[int]
    params: SamplingParams
    request_id: str
    group: str


class GroupUnavailable(RequestFailed):
    """The request could not be finished because the ranks are not there."""


async def run(serving: Serving, endpoint: str, call: Call) -> AsyncGenerator[Chunk, None]:
    """Answers one call chunk by chunk. Closing the generator, or cancelling the task in it, aborts the request.

    Raises:
        RequestError: the engine refused it.
        GroupUnavailable: there are no ranks to answer it, or they were lost meanwhile.
        RequestFailed: it failed for a reason of its own.
    """
    engine, observer = serving.engine, serving.observe()
    reason, seen, restarts = "gone", False, engine.restarts
    observer.started(endpoint, len(call.prompt))
    chunks = engine.astream(call.prompt, call.params, request_id=call.request_id)
    try:
        serving.running.add(call)
        async for chunk in chunks:
            if chunk.token_ids:
                if not seen:
                    seen = True
                    observer.first_token()
                serving.pulse.at = time.monotonic()
                observer.tokens(len(chunk.token_ids))
            if chunk.finish_reason is not None:
                reason = chunk.finish_reason
            yield chunk
    except RequestError:
        reason = "refused"
        raise
    except RequestFailed as error:
        reason = "error"
        lost = isinstance(error, ReplicaLost) or engine.restarts != restarts
        if not lost and engine.health(ask_ranks=False).ready:
            raise
        raise GroupUnavailable(str(error)) from None
    finally:
        serving.running.discard(call)
        await closed(chunks)
        observer.finished(reason)


async def run_all(serving: Serving, endpoint: str, calls: Sequence[Call]) -> AsyncGenerator[tuple[Call, Chunk], None]:
    """Answers several calls at once; chunks come as they are ready. The first error ends all of them. Closing the
    generator aborts what still runs. Raises as :func:`run`."""
    streams = [run(serving, endpoint, call) for call in calls]
    if len(calls) == 1:
        try:
            async for chunk in streams[0]:
                yield calls[0], chunk
        finally:
            await closed(streams[0])
        return
    arrived: asyncio.Queue[tuple[Call, Chunk] | BaseException | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(call, stream, arrived)) for call, stream in zip(calls, streams, strict=True)]
    try:
        left = len(tasks)
        while left:
            item = await arrived.get()
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def closed(stream: AsyncIterator[Any]) -> None:
    """Closes an async generator, so that what it holds is given back now and not when it is collected."""
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()


async def _pump(
    call: Call,
    stream: AsyncGenerator[Chunk, None],
    arrived: asyncio.Queue[tuple[Call, Chunk] | BaseException | None],
) -> None:
    try:
        async with contextlib.aclosing(stream):
            async for chunk in stream:
                arrived.put_nowait((call, chunk))
        arrived.put_nowait(None)
    except Exception as error:
        arrived.put_nowait(error)
