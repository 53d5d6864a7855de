"""Answers that come piece by piece, and the watch for clients that leave before the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from raylaunch.errors import RaylaunchError
from raylaunch.serve.errors import ApiError, api_error

SEND_S = 60.0  # a client that takes nothing for so long is taken for gone
GONE = 499  # what nginx logs for a client that left; it is sent to nobody
DONE = b"data: [DONE]\n\n"
WHOLE_OR_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, whole or as events.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}
T = TypeVar("T")

log = logging.getLogger(__name__)
encode = msgspec.json.encode


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(data) + b"\n\n"


def json_answer(data: Any) -> Response:
    """A whole answer."""
    return Response(encode(data), media_type="application/json")


async def answer(request: Request, work: Coroutine[Any, Any, Any]) -> Response:
    """Does the work and answers with what it returns, as JSON; cancels it if the client leaves."""
    try:
        return json_answer(await while_connected(request.receive, work))
    except ClientDisconnect:
        return Response(status_code=GONE)


class EventStream(Response):
    """Sends each event as soon as it is there, then ``[DONE]``. The first event is waited for, so that a request that
    is refused has its own status; a later error is an event of its own."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Any, None]) -> None:
        self.events = events
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientDisconnect):
            await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self.events) as events:
            data = await anext(events, None)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                while data is not None:
                    await _sent(send, event(data))
                    data = await anext(events, None)
            except (RaylaunchError, HTTPException) as error:
                await _sent(send, event(_error(error).body()))
            except (asyncio.CancelledError, ClientDisconnect):
                raise
            except Exception:
                log.exception("an answer broke off")
                await _sent(send, event(ApiError(500, "an error inside the server; its log says more").body()))
            await _sent(send, DONE, more=False)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. Raises ClientDisconnect, with the work cancelled and ended, if the client leaves before."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _sent(send: Send, body: bytes, more: bool = True) -> None:
    try:
        async with asyncio.timeout(SEND_S):
            await send({"type": "http.response.body", "body": body, "more_body": more})
    except TimeoutError:
        raise ClientDisconnect from None


def _error(error: RaylaunchError | HTTPException) -> ApiError:
    if isinstance(error, ApiError):
        return error
    return api_error(error) if isinstance(error, RaylaunchError) else ApiError(error.status_code, str(error.detail))
