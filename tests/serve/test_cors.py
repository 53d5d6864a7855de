"""Pages of other origins: preflights without a key, and the headers on every answer."""

from __future__ import annotations

import pytest

from raylaunch.config import LaunchConfig, ServeConfig
from raylaunch.engine.health import Condition, Health
from raylaunch.errors import ConfigError

PAGE = "http://localhost:5173"
ORIGIN = {"origin": PAGE}
PREFLIGHT = {
    **ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-os",
}
PATHS = ("/v1/chat/completions", "/v1/completions", "/generate", "/v1/models", "/nope")
GONE = Health(False, Condition.REBUILDING, "rank 1 is lost", (), 0, 0)
ALLOW = "access-control-allow-origin"


@pytest.mark.parametrize("settings", [{}, {"api_key": "secret"}, {"cors_origins": [PAGE], "api_key": "secret"}])
def test_preflights_need_no_key(client_with, settings):
    client = client_with(**settings)
    for path in PATHS:
        answer = client.options(path, headers=PREFLIGHT)
        assert (path, answer.status_code, answer.headers[ALLOW]) == (path, 200, PAGE)
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert answer.headers["access-control-allow-credentials"] == "true"


def test_every_answer_can_be_read(client_with, engine, monkeypatch):
    client = client_with(api_key="secret", max_body_bytes=1000)
    key = {**ORIGIN, "authorization": "Bearer secret"}

    def post(data, path="/generate", **more):
        return client.post(path, json=data, headers={**key, **more})

    answers = {
        200: post({"text": "1+1="}),
        401: client.get("/v1/models", headers=ORIGIN),
        404: client.get("/nope", headers=key),
        405: client.get("/generate", headers=key),
        400: post({"text": ""}),
        413: post({"text": "1" * 2000}),
        415: post({}, **{"content-type": "text/plain"}),
    }
    stream = post({"text": "1+1=", "stream": True})
    assert stream.headers["content-type"].startswith("text/event-stream")
    monkeypatch.delattr(engine, "model_name")
    answers[500] = client.get("/v1/models", headers=key)
    engine.now = GONE
    answers[503] = post({"text": "1+1="})
    for status, answer in [*answers.items(), (200, stream)]:
        (allowed,) = answer.headers.get_list(ALLOW)  # which of the two is up to Starlette's version
        assert (answer.status_code, allowed in ("*", PAGE)) == (status, True)


def test_whose_page_it_is_counts(client_with):
    client = client_with(cors_origins=[PAGE, "https://chat.example"])
    for origin, allowed in ((PAGE, True), ("https://chat.example", True), ("https://elsewhere.example", False)):
        answer = client.get("/v1/models", headers={"origin": origin})
        assert (answer.status_code, answer.headers.get(ALLOW)) == (200, origin if allowed else None)
        assert client.options("/generate", headers={**PREFLIGHT, "origin": origin}).status_code == (
            200 if allowed else 400
        )


def test_without_an_origin_and_without_the_setting(client_with):
    assert ALLOW not in client_with().get("/v1/models").headers
    closed = client_with(cors_origins=[], api_key="secret")
    assert ALLOW not in closed.get("/health", headers=ORIGIN).headers
    answer = closed.options("/generate", headers=PREFLIGHT)
    assert (answer.status_code, ALLOW in answer.headers) == (401, False)


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("'*'", ("*",)),
        ("[]", ()),
        (PAGE, (PAGE,)),
        (f"[{PAGE}, 'null']", (PAGE, "null")),
        ("app://a.b", ("app://a.b",)),
    ],
)
def test_the_setting(value, origins):
    assert ServeConfig().cors_origins == ("*",)
    assert LaunchConfig.default([f"serve.cors_origins={value}"]).serve.cors_origins == origins


@pytest.mark.parametrize("value", ["localhost:5173", f"{PAGE}/", "[http://a/b]", "http://A.b", "''", "7"])
def test_what_is_no_origin(value):
    with pytest.raises(ConfigError, match=r"serve\.cors_origins"):
        LaunchConfig.default([f"serve.cors_origins={value}"])
