"""Whether the process is up, whether it can answer, and whether it does."""

from __future__ import annotations

import asyncio
import secrets
import time

from fastapi import APIRouter
from starlette.responses import Response

from raylaunch.errors import RaylaunchError
from raylaunch.sampling import SamplingParams
from raylaunch.serve.errors import ApiError, unavailable
from raylaunch.serve.running import Serving, closed
from raylaunch.serve.streaming import json_answer

HEALTH = "/health"
LOOK_S = 0.05


def build(serving: Serving) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Health"])

    @router.get(HEALTH)
    async def health() -> Response:
        """The process is up. Needs no API key."""
        return json_answer({"status": "up"})

    @router.get("/ready")
    async def ready() -> Response:
        """200 if requests are answered now, 503 with the reason if not."""
        _require_ready(serving)
        return json_answer({"status": "ready"})

    @router.get("/health_generate")
    async def health_generate() -> Response:
        """200 when the ranks have given out a token since the question; 503 with the reason if they do not."""
        _require_ready(serving)
        seconds = serving.engine.config.deadlines.health
        began = time.monotonic()
        token = asyncio.create_task(_one_token(serving))
        try:
            while not token.done() and serving.pulse.at < began:
                left = began + seconds - time.monotonic()
                if left <= 0:
                    raise _unready(f"no token within {seconds:g} s")
                await asyncio.wait((token,), timeout=min(LOOK_S, left))
                _require_ready(serving)
            if token.done():
                token.result()
        except RaylaunchError as error:
            raise _unready(str(error)) from None
        finally:
            token.cancel()
            await asyncio.gather(token, return_exceptions=True)
        return json_answer({"status": "ready"})

    return router


async def _one_token(serving: Serving) -> None:
    params = SamplingParams(max_new_tokens=1, ignore_eos=True)
    chunks = serving.engine.astream([0], params, request_id=f"health-{secrets.token_hex(8)}")
    try:
        async for _ in chunks:
            return
    finally:
        await closed(chunks)


def _require_ready(serving: Serving) -> None:
    health = serving.engine.health(ask_ranks=False)
    if not health.ready:
        raise _unready(health.reason)


def _unready(reason: str) -> ApiError:
    return unavailable(f"the engine is not ready: {reason}")
