"""The status of a stream that SGLang answers: it says 200 before it has looked at the request."""

from __future__ import annotations

import json

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylaunch.serve.errors import ApiError, internal

ERROR = b'data: {"error"'


class FirstEvent:
    """Holds the start of an answer back until its first bytes are there. If those are an error, its code is the
    status, as if the answer were not streamed. An exception before them is answered too: to Starlette the answer has
    begun by then, and it would break the connection off."""

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
                await send({**start, "status": status_of(start["status"], bytes(message.get("body", b"")))})
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except Exception as error:
            if held is None:
                raise
            known = error.__cause__  # Starlette's own error says only that the answer has begun
            if isinstance(known, HTTPException):
                await ApiError(known.status_code, known.detail).response()(scope, receive, send)
                return
            await internal().response()(scope, receive, send)
            raise  # for the server's log


def status_of(status: int, body: bytes) -> int:
    """The status of an answer that says ``status`` and begins with ``body``."""
    if status != 200 or not body.startswith(ERROR):
        return status
    try:
        code = json.loads(body.removeprefix(b"data: ").partition(b"\n")[0])["error"]["code"]
    except (ValueError, LookupError, TypeError):
        return status
    return code if isinstance(code, int) and 400 <= code < 600 else status
