"""Bodies that hold half of a surrogate pair, refused before an application of somebody else's fails over them."""

from __future__ import annotations

import json
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylaunch.serve.errors import wrong
from raylaunch.values.encodable import problem_of

_MAY_BE = re.compile(rb"\\u[dD][89a-fA-F]")


class RefuseLoneSurrogates:
    """Answers 400 to JSON with text that cannot be encoded. A body is read whole first, as it would be by the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kinds = [value for name, value in scope.get("headers", ()) if name == b"content-type"]
        if scope["type"] != "http" or any(kind.startswith(b"multipart/") for kind in kinds):
            await self.app(scope, receive, send)
            return
        messages: list[Message] = []
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
        if problem := problem_of_body(b"".join(message.get("body", b"") for message in messages)):
            await wrong(f"the body holds text that cannot be encoded: {problem}").response()(scope, receive, send)
            return
        messages.reverse()

        async def again() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, again, send)


def problem_of_body(body: bytes) -> str:
    """What is wrong with a text of this JSON; "" if nothing is, or if it is no JSON, which others say better."""
    if not _MAY_BE.search(body):
        return ""
    try:
        return problem_of(json.loads(body))
    except (ValueError, RecursionError):
        return ""
