"""Fields that SGLang's own application would ignore: what it has to drop is refused by its path."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Annotated, Any, Literal

import httpx
import pytest
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from raylaunch.serve.sglang.known_fields import KnownFields, dropped, refusal, request_kinds
from tests.serve import field_table as table
from tests.serve.test_fields import PLACES, bodies
from tests.sglang.conftest import needs_sglang


class Text(BaseModel):
    type: Literal["text"]
    text: str


class Picture(BaseModel):
    type: Literal["picture"]
    url: str
    schema_: dict[str, Any] | None = Field(alias="schema", default=None)


class Speaker(BaseModel):
    role: Literal["user"]
    content: str | list[Text | Picture]


class Assistant(BaseModel):
    role: Literal["assistant"]
    content: str | None = None
    calls: list[Text] | None = None


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


class Request(BaseModel):
    messages: list[Annotated[Speaker | Assistant, "one of them"]]
    options: dict[str, int] | None = None
    open: Anything | None = None
    ids: list[int] | None = None
    other: object = None


@dataclasses.dataclass
class Bare:
    text: str | None = None
    sampling_params: Any = None


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant"}


@pytest.mark.parametrize(
    ("body", "kind", "path"),
    [
        ({"messages": [USER, ASSISTANT], "options": {"any": 1}, "open": {"any": 1}}, Request, None),
        ({"messages": [USER], "other": {"any": 1}}, Request, None),
        ({"messages": [USER], "ids": [1, 2], "store": False, "metadata": {"a": 1}, "made_up": None}, Request, None),
        ({"messages": [USER], "mesages": []}, Request, "mesages"),
        ({"messages": [USER], "store": True}, Request, "store"),
        ({"messages": [USER, ASSISTANT | {"contents": "a"}]}, Request, "messages.1.contents"),
        ({"messages": [USER | {"calls": []}]}, Request, "messages.0.calls"),  # the other role's
        ({"messages": [{"role": "USER", "calls": []}]}, Request, None),  # SGLang says what a role may be
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "url": "b"}]}]}, Request,
         "messages.0.content.0.url"),
        ({"messages": [{"role": "user", "content": [{"type": "picture", "url": "b", "schema": {"any": 1}}]}]}, Request,
         None),
        ({"messages": [ASSISTANT | {"calls": [{"type": "text", "text": "a"}, {"txt": "a"}]}]}, Request,
         "messages.0.calls.1.txt"),
        ({"text": "a", "sampling_params": {"any": 1}}, Bare, None),
        ({"text": "a", "temperature": 0}, Bare, "temperature"),
        ([], Bare, None),
        ("text", Bare, None),
    ],
)  # fmt: skip
def test_what_no_class_knows(body, kind, path):
    error = refusal(json.dumps(body).encode(), kind, {})
    assert (error.param if error else None) == path


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_sglangs_to_refuse(body):
    assert refusal(body, Bare, {}) is None


def test_what_sglang_knows_and_drops():
    fields = dropped(None)["/v1/completions"]
    for given, param in (
        ({"best_of": 2}, "best_of"),
        ({"best_of": 1, "suffix": ""}, None),
        ({"suffix": "a"}, "suffix"),
    ):
        error = refusal(json.dumps(given).encode(), Anything, fields)
        assert (error.param if error else None) == param
    assert "suffix" not in dropped("deepseek_coder")["/v1/completions"]


def test_a_body_passes_as_it_came():
    async def echoes(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await Response(body)(scope, receive, send)

    async def pieces():
        for piece in (b'{"te', b'xt":', b' "a"}'):
            yield piece

    async def ask():
        app = KnownFields(echoes, {"/generate": Bare}, {})
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            whole = await client.post("/generate", content=pieces())
            wrong = await client.post("/generate", json={"txt": "a"})
            other = await client.post("/other", json={"txt": "a"})
            return whole, wrong, other

    whole, wrong, other = asyncio.run(ask())
    assert (whole.status_code, whole.content) == (200, b'{"text": "a"}')
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "txt")
    assert wrong.json()["error"]["message"].endswith("did you mean 'text'?")
    assert other.status_code == 200


_OF_NO_MESSAGE = {"annotations", "audio", "function_call", "refusal", "type"}
REFUSED = {
    "completion": {"best_of", "custom_labels", "session_params", "structural_tag", "suffix"},
    "chat": {
        "add_generation_prompt", "audio", "chat_template", "custom_labels", "documents", "function_call", "functions",
        "min_dynamic_patch", "modalities", "moderation", "prediction", "service_tier", "session_params", "store",
        "structural_tag", "verbosity", "web_search_options",
    },
    "stream options": {"include_obfuscation"},
    **{f"message of {role}": _OF_NO_MESSAGE for role in table.MESSAGES},
    "message of user": _OF_NO_MESSAGE | {"name", "reasoning_content", "tool_call_id", "tool_calls", "tools"},
    "tool call": {"custom"},
    "tool": {"custom"},
}  # fmt: skip
"""Of our table, by place."""


def names_refused(place):
    """Fields that SGLang's application would drop."""
    kinds, drops = request_kinds(), dropped(None)
    for name, row in PLACES[place][0].items():
        path, _, (body,), field = bodies(place, name, [row.value], row.beside)
        error = refusal(json.dumps(body).encode(), kinds[path], drops.get(path, {}))
        if error is not None:
            assert error.param == field
            yield name


@needs_sglang
@pytest.mark.parametrize("place", [place for place in PLACES if place != "sampling"])
def test_what_becomes_of_the_fields_of_our_table(place):
    """All others are fields of SGLang's own classes, or cannot change an answer."""
    known = {one.name for one in dataclasses.fields(request_kinds()["/generate"])}
    gone = {"mm_data_mooncake"} - known if place == "generate" else set()  # since 0.5.18 or later
    assert set(names_refused(place)) == REFUSED.get(place, set()) | gone
