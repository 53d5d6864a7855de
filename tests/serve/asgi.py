"""One HTTP exchange with an application, by its bare protocol: the test decides when the client leaves."""

from __future__ import annotations

import asyncio
import json
from typing import Any


class Exchange:
    """A request and what is answered to it.

    Attributes:
        gone: set it and the client has left.
    """

    def __init__(self, app: Any, path: str, body: bytes = b"", *, method: str = "POST", complete: bool = True) -> None:
        self.app, self.path, self.method = app, path, method
        self.gone = asyncio.Event()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.ended = False
        self.arrived = asyncio.Event()
        self._to_come: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": not complete}]

    async def run(self) -> Exchange:
        """Returns when the application has done with it."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json"), (b"host", b"test")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        await self.app(scope, self._receive, self._send)
        return self

    def json(self) -> Any:
        return json.loads(self.body)

    async def _receive(self) -> dict[str, Any]:
        if self._to_come:
            return self._to_come.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")
            self.ended = not message.get("more_body", False)
            self.arrived.set()
