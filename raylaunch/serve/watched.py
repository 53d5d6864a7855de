"""What an operator wants to know of every HTTP request: how it was answered, and where spans are wanted its span."""

from __future__ import annotations

import time
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylaunch.engine import EngineBase
from raylaunch.serve.metrics import Metrics
from raylaunch.serve.request_ids import HEADER
from raylaunch.tracing.spans import RequestFacts, of_request, request_span

OTHER = "other"


class Watched:
    """Middleware, outside of all that may refuse a request.

    Args:
        paths: that are counted by their name and have spans; a client may ask for any other.
    """

    def __init__(self, app: ASGIApp, engine: EngineBase, metrics: Metrics, paths: Collection[str]) -> None:
        self.app, self.engine, self.metrics, self.paths = app, engine, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else OTHER
        tracer = self.engine.tracer if path != OTHER else None
        facts = RequestFacts(scope["method"], path)

        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = message["status"]
                facts.request_id = Headers(raw=message.get("headers", [])).get(HEADER, "")
                self.metrics.responses.labels(path, str(facts.status)).inc()
            await send(message)

        if tracer is None:
            await self.app(scope, receive, seen)
            return
        token = of_request.set(facts)
        try:
            await self.app(scope, receive, seen)
        finally:
            of_request.reset(token)
            tracer.send(request_span(facts, time.time(), self.engine.model_name), Headers(scope=scope))
