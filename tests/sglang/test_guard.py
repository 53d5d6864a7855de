"""What passes to SGLang's HTTP application, by what the group is in."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from starlette.responses import PlainTextResponse

from raylaunch.engine.health import Condition, Health
from raylaunch.serve.sglang.app import Guard
from tests.serve.fake_engine import FakeEngine

REQUESTS = ("/generate", "/v1/chat/completions", "/ping")
OTHERS = ("/continue_generation", "/abort_request", "/v1/models")


def statuses(now, paths):
    """The status of an answer for each path."""
    engine = FakeEngine()
    engine.now = now
    side = SimpleNamespace(callers=set(), patient=set(), given_up={})
    guard = Guard(engine, side, PlainTextResponse("from SGLang"))

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://x") as client:
            return [(await client.post(path)).status_code for path in paths]

    return set(asyncio.run(ask()))


@pytest.mark.parametrize(
    ("ready", "condition", "requests", "others"),
    [
        (True, "ready", 200, 200),
        (False, "ready", 503, 200),  # no progress: an operator may have to abort a request, or to let it go on
        (False, "launching", 503, 503),
        (False, "rebuilding", 503, 503),
        (False, "failed", 503, 503),
    ],
)
def test_an_operator_passes_as_long_as_there_are_ranks(ready, condition, requests, others):
    now = Health(ready, Condition(condition), "no step for 11 s", (), 0, 0)
    assert statuses(now, REQUESTS) == {requests}
    assert statuses(now, OTHERS) == {others}


def test_a_caller_that_was_given_up_is_told_what_was_lost():
    """The engine may be ready again by then, or never have been otherwise."""
    side = SimpleNamespace(callers=set(), patient=set(), given_up={})

    async def waits(scope, receive, send):
        (caller,) = side.callers
        side.given_up[caller] = "an output could not be delivered"
        caller.cancel()
        await asyncio.sleep(10)

    engine = FakeEngine()
    engine.now = Health(True, Condition.READY, "", (), 0, 0)

    async def ask():
        guard = Guard(engine, side, waits)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://x") as client:
            return await client.get("/server_info")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "an output could not be delivered")
    assert not side.callers
    assert not side.given_up
