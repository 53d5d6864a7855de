"""Whether the process is up, whether it can answer, and whether it does."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from raylaunch.errors import EngineBusy, RaylaunchError
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.serve.errors import ApiError, unavailable
from raylaunch.serve.reference.streaming import json_answer
from raylaunch.serve.running import Serving, closed

if TYPE_CHECKING:
    from raylaunch.engine import EngineBase

HEALTH, READY = "/health", "/ready"
LOOK_S = 0.05


def build(serving: Serving) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Health"])

    @router.get(HEALTH)
    async def health() -> Response:
        """The process is up. Needs no API key."""
        return json_answer({"status": "up"})

    @router.get(READY)
    async def ready() -> Response:
        """200 if requests are answered now, 503 with the reason if not. Needs no API key."""
        require_ready(serving.engine)
        return json_answer({"status": "ready"})

    @router.get("/health_generate")
    async def health_generate() -> Response:
        """200 when the ranks have given out a token since the question; 503 with the reason if they do not."""
        began = time.monotonic()
        seconds = serving.engine.config.deadlines.health
        await require_answer(serving.engine, lambda: _one_token(serving), lambda: serving.pulse.at >= began, seconds)
        return json_answer({"status": "ready"})

    return router


def require_ready(engine: EngineBase) -> None:
    """Raises :class:`ApiError`, 503 with the reason, if requests are not answered now. Asks no rank."""
    health = engine.health(ask_ranks=False)
    if not health.ready:
        raise _unready(health.reason)


async def require_answer(
    engine: EngineBase, ask: Callable[[], Coroutine[Any, Any, None]], answered: Callable[[], bool], seconds: float
) -> None:
    """Returns when the ranks have answered. Whatever becomes of the question, it has ended by then.

    Args:
        ask: a question to them.
        answered: whether they have answered anybody meanwhile, which will do.
    Raises:
        ApiError: 503 with the reason: they did not within ``seconds``, they could not, or they are lost, which is not
            waited for.
    """
    require_ready(engine)
    end = time.monotonic() + seconds
    asking = asyncio.create_task(ask())
    try:
        while not (asking.done() or answered()):
            left = end - time.monotonic()
            if left <= 0:
                raise _unready(f"no token within {seconds:g} s")
            await asyncio.wait((asking,), timeout=min(LOOK_S, left))
            require_ready(engine)
        if asking.done():
            asking.result()
    except ApiError:
        raise
    except RaylaunchError as error:
        raise _unready(str(error)) from None
    except HTTPException as error:  # how SGLang says it
        raise _unready(error.detail) from None
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def _one_token(serving: Serving) -> None:
    """Asks for a token until the question is taken: an engine that has no room for it is busy with others, whose
    tokens will do."""
    params = SamplingParams(max_new_tokens=1, ignore_eos=True)
    while True:
        chunks = serving.engine.astream([0], params, request_id=f"health-{secrets.token_hex(8)}")
        try:
            async for _ in chunks:
                return
        except EngineBusy:
            await asyncio.sleep(LOOK_S)
        finally:
            await closed(chunks)


def _unready(reason: str) -> ApiError:
    return unavailable(f"the engine is not ready: {reason}")
