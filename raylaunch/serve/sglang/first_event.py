"""The status of a stream that SGLang answers: it says 200 before it has looked at the request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylaunch.serve.errors import RETRY_AFTER_S, ApiError, internal, unavailable

EVENT = b"data: {"
SIGNS = (b'{"error"', b'"status_code"')
"""One of them is in every event that is an error, and in hardly another: those need not be read."""


class FirstEvent:
    """Holds the start of an answer back until its first bytes are there. If those are an error, its code is the
    status, as if the answer were not streamed. An exception before them is answered too: to Starlette the answer has
    begun by then, and it would break the connection off. Whoever is answered that there are no ranks is told to ask
    again, as by the rest of the server."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: Message | None = None

        async def sent(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                held = message
                return
            if held is not None:
                start, held = held, None
                start["status"] = status_of(start["status"], bytes(message.get("body", b"")))
                if start["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
                    MutableHeaders(scope=start).setdefault("retry-after", RETRY_AFTER_S)
                await send(start)
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except Exception as error:
            if held is None:
                raise
            # Starlette's own error says only that the answer has begun.
            known = error.__cause__ if isinstance(error, RuntimeError) else None
            if isinstance(known, HTTPException):
                await _answer(known).response()(scope, receive, send)
                return
            await internal().response()(scope, receive, send)
            raise  # for the server's log


def _answer(error: HTTPException) -> ApiError:
    if error.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        return unavailable(error.detail)
    return ApiError(error.status_code, error.detail, headers=error.headers)


def status_of(status: int, body: bytes) -> int:
    """The status of an answer that says ``status`` and begins with ``body``."""
    if status != 200 or not body.startswith(EVENT) or not any(sign in body for sign in SIGNS):
        return status
    try:
        code = _code(json.loads(body.removeprefix(b"data: ").partition(b"\n")[0]))
    except (ValueError, LookupError, TypeError):
        return status
    return code if isinstance(code, int) and 400 <= code < 600 else status


def _code(event: Mapping[str, Any]) -> object:
    """Of an error, or of an output that ends a request whose ranks were lost; None if that is one of several."""
    if "error" in event:
        return event["error"]["code"]
    reason = event["meta_info"]["finish_reason"]
    return reason["status_code"] if reason["type"] == "abort" and "index" not in event else None
