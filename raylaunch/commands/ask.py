"""Many prompts, as many at a time as may run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raylaunch.engine import EngineBase
    from raylaunch.frontends.requests import Completion
    from raylaunch.frontends.sampling import SamplingParams


def ask_all(
    engine: EngineBase, prompts: Sequence[str], params: SamplingParams, at_once: int | None = None
) -> list[Completion]:
    """The answers, in the order of the prompts. The first error ends the others.

    Args:
        at_once: requests at a time; None for ``engine.max_running_requests``.
    Raises:
        RequestError, RequestFailed: as :meth:`raylaunch.Engine.generate`.
    """
    return asyncio.run(_ask_all(engine, prompts, params, at_once or engine.config.engine.max_running_requests))


async def _ask_all(
    engine: EngineBase, prompts: Sequence[str], params: SamplingParams, at_once: int
) -> list[Completion]:
    places = asyncio.Semaphore(at_once)

    async def ask(prompt: str) -> Completion:
        async with places:
            return await engine.agenerate(prompt, params)

    return await asyncio.gather(*(ask(prompt) for prompt in prompts))
