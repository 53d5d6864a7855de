"""What a request must pass before anything looks into it: its key, its size, and how many run already.

Plain ASGI: nothing here buffers an answer or hides that a client has left.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from typing import TYPE_CHECKING

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylaunch.errors import ConfigError
from raylaunch.serve.errors import RETRY_AFTER_S, ApiError
from raylaunch.values.api_key import problem_of

if TYPE_CHECKING:
    from raylaunch.config import LaunchConfig, ServeConfig

MAX_CONCURRENT = 256
BODY_S, SLOWEST = 30.0, 4 << 10  # seconds for a body, and bytes of it for which there is another second


def max_concurrent(config: LaunchConfig, settings: ServeConfig) -> int | None:
    """How many requests are answered at the same time; None for any number."""
    if settings.max_concurrent is None and config.engine.kind != "sglang":
        return MAX_CONCURRENT
    return settings.max_concurrent


class RequireKey:
    """Answers 401 unless the request carries ``Authorization: Bearer KEY``; ``open_paths`` and ``open_methods`` need
    none."""

    def __init__(
        self, app: ASGIApp, key: SecretStr, open_paths: Collection[str], open_methods: Collection[str] = ()
    ) -> None:
        self.app, self.open_paths, self.open_methods = app, frozenset(open_paths), frozenset(open_methods)
        secret = key.get_secret_value()
        if problem := problem_of(secret):  # of settings that were put together without a check
            raise ConfigError("serve.api_key", secret, problem)
        # Clients differ in how they send what is not ASCII.
        self._keys = (secret.encode("utf-8"), secret.encode("latin-1"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope) or self._holds(scope):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401,
            "this server needs an API key: send it as 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer", "connection": "close"},
        )
        await error.response()(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return scope["path"] in self.open_paths or scope["method"] in self.open_methods

    def _holds(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and any(hmac.compare_digest(key.strip(), one) for one in self._keys)


class LimitBody:
    """Answers 413 to a body above ``max_bytes``, declared or sent, and 408 to one that does not come."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdigit() and len(declared) < 20 and int(declared) <= self.max_bytes:
            await self.app(scope, self._counting(receive), send)
        else:
            await self._too_large().response()(scope, receive, send)

    def _too_large(self) -> ApiError:
        # The rest of the body is not read: the connection cannot be used again.
        return ApiError(
            413,
            f"the request's body is larger than {self.max_bytes} bytes (serve.max_body_bytes)",
            code="request_too_large",
            headers={"connection": "close"},
        )

    def _counting(self, receive: Receive) -> Receive:
        size, complete, end = 0, False, 0.0

        async def counted() -> Message:
            nonlocal size, complete, end
            if complete:
                return await receive()
            end = end or asyncio.get_running_loop().time() + BODY_S
            try:
                # Of the whole body: one that comes byte by byte would have a place for ever.
                async with asyncio.timeout_at(end + size / SLOWEST):  # wait_for makes a task of it
                    message = await receive()
            except TimeoutError:
                text = f"the request's body came too slowly: {BODY_S:g} s, and one more for every {SLOWEST} bytes"
                raise ApiError(408, text, headers={"connection": "close"}) from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > self.max_bytes:
                raise self._too_large()
            return message

        return counted


class LimitConcurrency:
    """Answers 429 while ``limit`` requests to ``paths`` are being answered; None is no limit."""

    def __init__(self, app: ASGIApp, limit: int | None, paths: Collection[str]) -> None:
        self.app, self.limit, self.paths = app, limit, frozenset(paths)
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.limit is None or scope["type"] != "http" or scope["path"] not in self.paths:
            await self.app(scope, receive, send)
            return
        if self.running >= self.limit:
            error = ApiError(
                429,
                f"{self.limit} requests are being answered already (serve.max_concurrent); try again later",
                code="too_many_requests",
                headers={"retry-after": RETRY_AFTER_S, "connection": "close"},
            )
            await error.response()(scope, receive, send)
            return
        self.running += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.running -= 1
