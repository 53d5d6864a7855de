"""Which replica answers a request to SGLang's application, and that an operator's reaches each."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse

from raylaunch.engine.health import Condition, Health
from raylaunch.serve.limits import LimitBody
from raylaunch.serve.sglang.replicas import Dispatch, OfReplica
from tests.serve.fake_engine import FakeEngine

READY = Health(True, Condition.READY, "", (), 0, 0)
GONE = replace(READY, ready=False, condition=Condition.REBUILDING, reason="rank 0 died")
STUCK = replace(READY, ready=False, reason="no step for 11 s")


class Manager:
    """What SGLang's application would find."""

    def __init__(self, number):
        self.number, self.said, self.status = number, [], 200


def answers(healths, asks, statuses=(200, 200), chosen=1):
    """The answers to (method, path, body), and what each replica was told."""
    engines, managers = [FakeEngine() for _ in healths], [Manager(number) for number in range(len(healths))]
    for engine, manager, now, status in zip(engines, managers, healths, statuses, strict=True):
        engine.now, manager.status = now, status
    manager = OfReplica(managers)

    async def theirs(scope, receive, send):
        body = await Request(scope, receive).body()
        await asyncio.sleep(0)  # others are answered meanwhile
        manager.said.append(body.decode())
        await JSONResponse({"at": manager.number}, manager.status)(scope, receive, send)

    dispatch = Dispatch(
        engines, [theirs] * len(healths), lambda prompt: chosen, lambda scope: scope["path"] == "/flush_cache"
    )

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(dispatch), base_url="http://x") as client:
            return await asyncio.gather(*(client.request(method, path, content=body) for method, path, body in asks))

    return asyncio.run(ask()), [one.said for one in managers]


def test_a_request_is_answered_by_the_replica_that_is_chosen():
    (answer,), told = answers([READY, READY], [("POST", "/generate", b"text")])
    assert (answer.json(), told) == ({"at": 1}, [[], ["text"]])


@pytest.mark.parametrize(
    ("healths", "statuses", "told", "answered"),
    [
        ([READY, READY], (200, 200), [["all"], ["all"]], (200, 1)),
        ([READY, READY], (200, 400), [["all"], ["all"]], (400, 1)),
        ([READY, READY], (400, 200), [["all"], []], (400, 0)),  # what one refuses is not done at another
        ([READY, GONE], (200, 200), [["all"], []], (200, 0)),
        ([STUCK, GONE], (200, 200), [["all"], []], (200, 0)),  # to set it going again
        ([GONE, GONE], (503, 503), [[], ["all"]], (503, 1)),
    ],
)
def test_what_an_operator_says_is_said_to_each(healths, statuses, told, answered):
    (answer,), said = answers(healths, [("POST", "/flush_cache", b"all")], statuses)
    assert (said, (answer.status_code, answer.json()["at"])) == (told, answered)


def test_requests_beside_one_another_are_at_their_own_replicas():
    asks = [("POST", "/flush_cache", b"a"), ("POST", "/generate", b"b"), ("POST", "/flush_cache", b"c")]
    _, told = answers([READY, READY], asks)
    assert sorted(told[0]) == ["a", "c"]
    assert sorted(told[1]) == ["a", "b", "c"]


def test_sessions_are_of_one_group():
    (answer,), told = answers([READY, READY], [("POST", "/open_session", b"{}")])
    assert (answer.status_code, told) == (400, [[], []])
    assert "send the whole conversation" in answer.json()["error"]["message"]


def test_what_a_replica_holds_is_set_at_that_replica():
    managers = [Manager(0), Manager(1)]
    OfReplica(managers).status = 503
    assert [one.status for one in managers] == [503, 200]


@pytest.mark.parametrize("path", ["/generate", "/flush_cache"])
def test_a_body_that_is_too_large_is_refused(path):
    engine = FakeEngine()
    engine.now = READY
    dispatch = Dispatch(
        [engine], [None], lambda prompt: 0, lambda scope: scope["path"] == "/flush_cache", ("/generate",)
    )

    async def chunks():
        for _ in range(3):
            yield b"12345"

    async def ask():
        transport = httpx.ASGITransport(LimitBody(dispatch, max_bytes=14))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post(path, content=chunks())

    assert asyncio.run(ask()).status_code == 413


def test_where_prompts_count_the_body_is_read_and_goes_on_whole():
    engines, manager, prompts = [FakeEngine(), FakeEngine()], [], []
    for engine in engines:
        engine.now = READY

    async def theirs(scope, receive, send):
        manager.append(await Request(scope, receive).body())
        await JSONResponse({})(scope, receive, send)

    def choose(prompt):
        prompts.append(prompt)
        return 0

    async def ask():
        dispatch = Dispatch(engines, [theirs] * 2, choose, lambda scope: False, reads=("/generate",))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(dispatch), base_url="http://x") as client:
            for path in ("/generate", "/v1/models"):
                await client.post(path, content=b'{"text": "12+30="}')

    asyncio.run(ask())
    assert prompts == ["12+30=", ""]
    assert manager == [b'{"text": "12+30="}'] * 2
