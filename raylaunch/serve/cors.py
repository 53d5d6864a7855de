"""Pages of other origins in browsers (CORS): which may ask this server, and what a browser's preflight is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """``app`` for pages of these origins, as SGLang's server is for those of all: any method, header and credential.

    Around everything else: a preflight carries no key, and a page can read an error only if it has the headers too.

    Args:
        origins: ``*`` is any; empty leaves every page to its own origin.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=origins, allow_credentials=True, allow_methods=("*",), allow_headers=("*",)
    )


class OpenToPages(FastAPI):
    """An application with :func:`with_cors` around its errors too."""

    def __init__(self, *, origins: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._origins = tuple(origins)

    def build_middleware_stack(self) -> ASGIApp:
        return with_cors(super().build_middleware_stack(), self._origins)


class HideOrigin:
    """Keeps the origin from an application that would answer it by a rule of its own, as SGLang's does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "headers": [one for one in scope["headers"] if one[0] != b"origin"]}
        await self.app(scope, receive, send)
