"""The status of a stream whose application says 200 first and looks at the request then, as SGLang's does."""

from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from raylaunch.serve.first_event import FirstEvent, status_of
from tests.serve.asgi import Exchange

DONE = b"data: [DONE]\n\n"


def refused(code):
    return b'data: {"error":{"message":"wrong","code":%s}}\n\n' % code


def exchange(*items):
    """What is answered by a stream of ``items``: bytes are sent, exceptions are raised, a function is called."""
    answer = None

    async def stream():
        for item in items:
            if isinstance(item, Exception):
                raise item
            if callable(item):
                await item(answer)
            else:
                yield item

    async def endpoint(request):
        return StreamingResponse(stream(), media_type="text/event-stream")

    app = FirstEvent(Starlette(routes=[Route("/", endpoint, methods=["POST"])]))
    answer = Exchange(app, "/")
    return answer


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, refused(b"400"), 400),
        (200, b'data: {"error": {"message": "lost", "code": 503}}\n\n', 503),
        (200, refused(b"400") + DONE, 400),
        (200, b'data: {"text":"4","error":5}\n\n', 200),
        (200, b'data: {"error":5}\n\n', 200),
        (200, b'data: {"error":{"message":"half of it', 200),
        (200, refused(b'"busy"'), 200),
        (200, refused(b"7"), 200),
        (200, b"", 200),
        (418, refused(b"400"), 418),
    ],
)
def test_an_errors_code_is_the_status(status, body, expected):
    assert status_of(status, body) == expected


def test_a_stream_that_begins_with_an_error():
    answer = asyncio.run(exchange(refused(b"400"), DONE).run())
    assert (answer.status, answer.body, answer.ended) == (400, refused(b"400") + DONE, True)


def test_a_stream_that_breaks_off_later_stays_what_it_is():
    answer = asyncio.run(exchange(b"data: 4\n\n", refused(b"503"), DONE).run())
    assert (answer.status, answer.body) == (200, b"data: 4\n\n" + refused(b"503") + DONE)
    answer = exchange(b"data: 4\n\n", KeyError("no such field"))
    with pytest.raises(KeyError):
        asyncio.run(answer.run())
    assert (answer.status, answer.body, answer.ended) == (200, b"data: 4\n\n", False)


def test_events_are_not_held_back():
    async def was_sent(answer):
        assert (answer.status, answer.body) == (200, b"data: 4\n\n")

    assert asyncio.run(exchange(b"data: 4\n\n", was_sent, DONE).run()).ended


def test_an_error_before_the_first_event_is_answered():
    answer = asyncio.run(exchange(HTTPException(503, "rank 1 is lost")).run())
    assert (answer.status, answer.json()["error"]["message"], answer.ended) == (503, "rank 1 is lost", True)
    answer = exchange(KeyError("no such field"))
    with pytest.raises(KeyError):  # for the server's log
        asyncio.run(answer.run())
    assert (answer.status, answer.json()["error"]["code"], answer.ended) == (500, "internal_error", True)


def test_other_answers_pass():
    async def endpoint(request):
        return JSONResponse({"error": {"code": 400}}, 202)

    app = FirstEvent(Starlette(routes=[Route("/", endpoint, methods=["POST"])]))
    answer = asyncio.run(Exchange(app, "/").run())
    assert (answer.status, answer.json()) == (202, {"error": {"code": 400}})
    assert asyncio.run(Exchange(app, "/nowhere").run()).status == 404
