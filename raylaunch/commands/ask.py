"""Many prompts, as many at a time as may run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raylaunch.errors import ConfigError, RequestError, RequestFailed

if TYPE_CHECKING:
    from raylaunch.config import LaunchConfig
    from raylaunch.engine import EngineBase
    from raylaunch.frontends.requests import Completion
    from raylaunch.frontends.sampling import SamplingParams


def require_room(config: LaunchConfig, at_once: int | None) -> None:
    """Raises :class:`ConfigError` if an engine would refuse some of so many requests at a time."""
    room = config.engine.max_running_requests + config.engine.max_waiting_requests
    if at_once is not None and at_once > room:
        raise ConfigError(
            "--concurrency", at_once, f"at most {room}: engine.max_running_requests and engine.max_waiting_requests"
        )


def ask_all(
    engine: EngineBase, prompts: Sequence[str], params: SamplingParams, at_once: int | None = None
) -> list[Completion | RequestError | RequestFailed]:
    """The answers, in the order of the prompts, each or why there is none: one that is refused costs no other.

    Args:
        at_once: requests at a time; None for ``engine.max_running_requests``.
    """
    return asyncio.run(_ask_all(engine, prompts, params, at_once or engine.config.engine.max_running_requests))


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
