"""Health that is asked while the group is lost: answered at once, and nothing is left for asyncio to complain of."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from raylaunch.config import ServeConfig
from raylaunch.engine.health import Condition
from raylaunch.errors import EngineBusy, RequestFailed
from raylaunch.serve import build_app
from raylaunch.serve.errors import ApiError
from raylaunch.serve.reference.health import require_answer
from tests.busy import patient
from tests.serve.asgi import Exchange

LOST = "LaunchError F07 [SERVE] rank 1 is lost"


@pytest.fixture
def nothing_left(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[Callable[[], Awaitable[Any]]], Any]]:
    """Runs a coroutine function; fails if an exception was left to nobody."""
    unretrieved: list[dict[str, Any]] = []

    def run(work: Callable[[], Awaitable[Any]]) -> Any:
        async def watched() -> Any:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: unretrieved.append(context))
            result = await work()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            gc.collect()
            await asyncio.sleep(0)
            return result

        return asyncio.run(watched())

    with caplog.at_level(logging.WARNING):
        yield run
        gc.collect()
    assert unretrieved == []
    assert caplog.records == []


def lose(engine: Any) -> None:
    engine.now = replace(engine.now, ready=False, condition=Condition.REBUILDING, reason=LOST)


async def begun(engine: Any) -> tuple[Exchange, asyncio.Task[Exchange]]:
    """A question of health that waits for the ranks."""
    engine.gate.clear()
    exchange = Exchange(build_app(engine, ServeConfig()), "/health_generate", method="GET")
    running = asyncio.create_task(exchange.run())
    while not engine.running:
        await asyncio.sleep(0.01)
    return exchange, running


@pytest.mark.parametrize("says", ["health", "the question", "both"])
def test_a_group_that_is_lost_meanwhile(engine: Any, nothing_left: Any, says: str) -> None:
    async def ask() -> tuple[Exchange, float]:
        exchange, running = await begun(engine)
        began = time.monotonic()
        if says != "health":
            engine.failure = RequestFailed(f"request x was lost: {LOST}")
            engine.gate.set()
        if says != "the question":
            lose(engine)
        await asyncio.wait_for(running, 5)
        return exchange, time.monotonic() - began

    exchange, took = nothing_left(ask)
    assert exchange.status == 503
    assert LOST in exchange.json()["error"]["message"]
    assert took < patient(0.3)
    assert engine.running == set()


def test_a_server_that_ends_meanwhile(engine: Any, nothing_left: Any) -> None:
    """It cancels what still runs once its patience is over."""

    async def ask() -> None:
        _, running = await begun(engine)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert engine.running == set()

    nothing_left(ask)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (RequestFailed("the ranks are gone"), "the ranks are gone"),
        (HTTPException(503, "said by SGLang"), "said by SGLang"),
        (None, ""),
    ],
)
def test_what_becomes_of_the_question(engine: Any, nothing_left: Any, outcome: Exception | None, reason: str) -> None:
    async def question() -> None:
        if outcome is not None:
            raise outcome

    async def ask() -> str:
        if outcome is None:
            await require_answer(engine, question, lambda: False, 5.0)
            return ""
        with pytest.raises(ApiError) as caught:
            await require_answer(engine, question, lambda: False, 5.0)
        assert caught.value.status_code == 503
        return caught.value.detail

    said = nothing_left(ask)
    assert said == (f"the engine is not ready: {reason}" if reason else "")


def test_no_question_is_asked_of_a_group_that_is_known_to_be_lost(engine: Any, nothing_left: Any) -> None:
    lose(engine)

    async def ask() -> Exchange:
        return await Exchange(build_app(engine, ServeConfig()), "/health_generate", method="GET").run()

    assert nothing_left(ask).status == 503
    assert engine.asked_for == []


@pytest.mark.parametrize("moves", [True, False])
def test_an_engine_that_is_full_is_well_as_long_as_it_gives_out_tokens(
    engine: Any, nothing_left: Any, moves: bool
) -> None:
    engine.config = engine.config.override("deadlines.health=0.5")
    answers = engine.astream

    async def full(prompt: Any, params: Any = None, *, request_id: str) -> Any:
        if request_id.startswith("health-"):
            raise EngineBusy("2 requests are running or waiting already; try again later")
        async for chunk in answers(prompt, params, request_id=request_id):
            yield chunk

    async def ask() -> Exchange:
        app = build_app(engine, ServeConfig())
        engine.astream = full
        engine.gate.clear()
        other = asyncio.create_task(Exchange(app, "/generate", b'{"text":"12+30="}').run())
        asked = asyncio.create_task(Exchange(app, "/health_generate", method="GET").run())
        await asyncio.sleep(0.1)
        if moves:
            engine.gate.set()
        exchange = await asyncio.wait_for(asked, 5)
        engine.gate.set()
        await other
        return exchange

    exchange = nothing_left(ask)
    assert exchange.status == (200 if moves else 503), exchange.body
    assert moves or "no token within 0.5 s" in exchange.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_requests_of_a_group_that_is_lost(engine: Any, nothing_left: Any, path: str, stream: bool) -> None:
    """Several choices at once, of which all fail and one is told."""
    body: dict[str, Any] = {"text": ["12+30=", "1+1="], "stream": stream}
    if path == "/v1/completions":
        body = {"model": engine.model_name, "prompt": "12+30=", "stream": stream, "n": 3, "temperature": 1.0}

    async def ask() -> Exchange:
        engine.gate.clear()
        exchange = Exchange(build_app(engine, ServeConfig()), path, json.dumps(body).encode())
        running = asyncio.create_task(exchange.run())
        while not engine.running:
            assert not running.done(), exchange.body
            await asyncio.sleep(0.01)
        lose(engine)
        engine.failure = RequestFailed(f"request x was lost: {LOST}")
        engine.gate.set()
        return await asyncio.wait_for(running, 5)

    exchange = nothing_left(ask)
    assert exchange.status == 503
    assert LOST.encode() in exchange.body
