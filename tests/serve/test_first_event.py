"""The status of a stream whose application says 200 first and looks at the request then, as SGLang's does."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from raylaunch.serve.sglang.first_event import FirstEvent, status_of
from tests.serve.asgi import Exchange

DONE = b"data: [DONE]\n\n"


def refused(code):
    return b'data: {"error":{"message":"wrong","code":%s}}\n\n' % code


def ended(reason, **more):
    event = {"text": "", "meta_info": {"id": "a", "finish_reason": reason}, **more}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


LOST = {"type": "abort", "message": "rank 1 is lost", "status_code": 503}


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
        (200, ended(LOST), 503),
        (200, ended({**LOST, "status_code": 400}) + DONE, 400),
        (200, ended(LOST, index=1), 200),
        (200, ended({**LOST, "type": "stop"}), 200),
        (200, ended({**LOST, "status_code": None}), 200),
        (200, ended(None, text='"status_code"'), 200),
        (200, ended({"type": "abort", "message": "Aborted"}), 200),
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
    error = answer.json()["error"]
    assert (answer.status, error["message"], answer.ended) == (503, "rank 1 is lost", True)
    assert (error["code"], answer.headers["retry-after"]) == ("engine_unavailable", "1")
    answer = asyncio.run(exchange(HTTPException(429, "later", {"retry-after": "7"})).run())
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")
    of_another = KeyError("no such field")
    of_another.__cause__ = HTTPException(503, "an answer of another server")
    for unexpected in (KeyError("no such field"), of_another):
        answer = exchange(unexpected)
        with pytest.raises(KeyError):  # for the server's log
            asyncio.run(answer.run())
        assert (answer.status, answer.json()["error"]["code"], answer.ended) == (500, "internal_error", True)


def test_whoever_finds_no_ranks_is_told_to_ask_again():
    for first in (refused(b"503"), ended(LOST)):
        answer = asyncio.run(exchange(first, DONE).run())
        assert (answer.status, answer.headers["retry-after"], answer.body) == (503, "1", first + DONE)
    assert "retry-after" not in asyncio.run(exchange(refused(b"400")).run()).headers


def test_other_answers_pass():
    async def endpoint(request):
        return JSONResponse({"error": {"code": 400}}, 202)

    app = FirstEvent(Starlette(routes=[Route("/", endpoint, methods=["POST"])]))
    answer = asyncio.run(Exchange(app, "/").run())
    assert (answer.status, answer.json()) == (202, {"error": {"code": 400}})
    assert asyncio.run(Exchange(app, "/nowhere").run()).status == 404
