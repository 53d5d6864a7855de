"""Many prompts, as many at a time as may run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raylaunch.errors import RequestError, RequestFailed

if TYPE_CHECKING:
    from raylaunch.engine import EngineBase
    from raylaunch.frontends.requests import Completion
    from raylaunch.frontends.sampling import SamplingParams


def ask_all(
    engine: EngineBase, prompts: Sequence[str], params: SamplingParams, at_once: int | None = None
) -> list[Completion | RequestError | RequestFailed]:
    """The answers, in the order of the prompts, each or why there is none: one that is refused costs no other.

    Args:
        at_once: requests at a time, of those that the engine takes; None for ``engine.max_running_requests``.
    """
    wanted = at_once or engine.config.engine.max_running_requests
    room = engine.frontend.room
    return asyncio.run(_ask_all(engine, prompts, params, wanted if room is None else min(wanted, room)))


async def _ask_all(
    engine: EngineBase, prompts: Sequence[str], params: SamplingParams, at_once: int
) -> list[Completion | RequestError | RequestFailed]:
    places = asyncio.Semaphore(at_once)

    async def ask(prompt: str) -> Completion | RequestError | RequestFailed:
        async with places:
            try:
                return await engine.agenerate(prompt, params)
            except (RequestError, RequestFailed) as error:
                return error

    return await asyncio.gather(*(ask(prompt) for prompt in prompts))


def require_answers(answers: Sequence[Completion | RequestError | RequestFailed]) -> None:
    """Raises the first error, with the number of its prompt and of how many others have none."""
    failed = {n: one for n, one in enumerate(answers, 1) if isinstance(one, RequestError | RequestFailed)}
    for number, error in failed.items():
        others = f" ({len(failed) - 1} more of {len(answers)} prompts have no answer)" if len(failed) > 1 else ""
        raise type(error)(f"prompt {number}: {error}{others}") from error
