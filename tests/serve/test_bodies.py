"""Bodies that are no JSON, not quite JSON, or too much of it: always a 4xx in OpenAI's shape."""

from __future__ import annotations

import pytest

from raylaunch.serve.errors import ApiError
from raylaunch.serve.reference.body import MAX_DEPTH, parse

DEEP = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON: Expecting value at line 1, column 1"),
        (b"{", "not JSON"),
        (b'{"a":NaN}', "NaN is no JSON number"),
        (b'{"a":-Infinity}', "-Infinity is no JSON number"),
        (b"\xff\xfe", "not UTF-8: byte 0 is 0xff"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"\\uDFFF":1}', "surrogate"),
        (b'{"a":1,"b":{"c":1,"d":2,"c":3}}', "the key 'c' is there more than once"),
        (b"[" * 100_000, "nested deeper"),
        (b"[" * 5_000 + b"]" * 5_000, "nested deeper"),
        (b'{"a":' + DEEP + b"}", "nested deeper than 64"),
        (b'{"a":' + b"9" * 5000 + b"}", "limit"),
    ],
)
def test_refused(data, message):
    with pytest.raises(ApiError) as caught:
        parse(data)
    assert caught.value.status_code == 400
    assert message in caught.value.detail


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
        (b'{"a":"\\\\ud800"}', {"a": "\\ud800"}),
        (b"1e999", float("inf")),  # refused where it is used: every number has its range
        (b"null", None),
    ],
)
def test_read(data, value):
    assert parse(data) == value


def test_the_deepest_that_is_read():
    assert parse(DEEP)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions", "/abort_request"])
@pytest.mark.parametrize(
    ("data", "content_type", "status"),
    [
        (b"{}", None, 415),
        (b"{}", "text/plain", 415),
        (b"a=1", "application/x-www-form-urlencoded", 415),
        (b"", "application/json", 400),
        (b"null", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'"text"', "application/json", 400),
        (b"\xff", "application/json; charset=utf-8", 400),
        (b'{"text":"1","prompt":"1","rid":"\\ud800","model":"\\ud800"}', "application/json", 400),
        (b'{"rid":' + b"9" * 4000 + b',"n":' + b"9" * 4000 + b"}", "application/json", 400),
        (b'{"text":"1","sampling_params":{"temperature":1e999},"prompt":"1","rid":1e999}', "application/json", 400),
        (b'{"rid":[[[[]]]],"text":{"a":[{}]},"prompt":{"a":[{}]}}', "application/json", 400),
    ],
)
def test_never_a_500(client, engine, path, data, content_type, status):
    headers = {} if content_type is None else {"content-type": content_type}
    answer = client.post(path, content=data, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 500
    assert engine.asked_for == []


def test_other_paths_and_methods(client):
    for answer, status in ((client.get("/nope"), 404), (client.get("/generate"), 405)):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert client.get("/generate").headers["allow"]
    assert len(client.get("/" + "x" * 3000).json()["error"]["message"]) < 200
