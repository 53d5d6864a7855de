"""Fields of requests that SGLang's own application would drop without a word: it ignores names that it does not know,
and a few that it does."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylaunch.serve.errors import ApiError, shown, wrong
from raylaunch.serve.reference.fields import Fields, Unsupported, same
from raylaunch.serve.reference.messages import Message as Turn
from raylaunch.serve.reference.messages import TextPart, Tool
from raylaunch.serve.reference.openai_schema import ChatRequest, CompletionRequest, StreamOptions

READ_OTHERWISE = ("reasoning", "response_format.schema")
"""What SGLang reads before its classes are made."""
OURS: tuple[type[Fields], ...] = (ChatRequest, CompletionRequest, StreamOptions, Turn, TextPart, Tool)
"""What they say of fields that ask for nothing, and of those that never change an answer, is true of SGLang too where
it does not know the field."""


def request_kinds() -> dict[str, Any]:
    """SGLang's class of a request, by its path."""
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
    from sglang.srt.entrypoints.openai.protocol import CompletionRequest as SglangCompletionRequest
    from sglang.srt.managers.io_struct import GenerateReqInput

    return {
        "/generate": GenerateReqInput,
        "/v1/completions": SglangCompletionRequest,
        "/v1/chat/completions": ChatCompletionRequest,
    }


def dropped(completion_template: str | None) -> dict[str, Unsupported]:
    """Fields that SGLang's classes have and nothing looks at, by path, with the values that ask for nothing.

    Args:
        completion_template: SGLang's argument. Without one it does not look at ``suffix``.
    """
    completions: dict[str, tuple[Any, ...]] = {"best_of": (1,), "session_params": ({},), "custom_labels": ({},)}
    if completion_template is None:
        completions["suffix"] = ("",)
    return {
        "/v1/completions": completions,
        "/v1/chat/completions": {"session_params": ({},), "min_dynamic_patch": ()},
    }


class KnownFields:
    """Answers 400 to a field that nothing would look at, with its path. Bodies that are no JSON object are SGLang's to
    refuse.

    Args:
        kinds: a class for each path whose bodies are looked at.
        dropped: fields of these classes that nothing looks at, by path.
    """

    def __init__(self, app: ASGIApp, kinds: Mapping[str, Any], dropped: Mapping[str, Unsupported]) -> None:
        self.app, self.kinds, self.dropped = app, kinds, dropped

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = self.kinds.get(scope["path"]) if scope["type"] == "http" else None
        if kind is None or scope["method"] not in ("POST", "PUT"):
            await self.app(scope, receive, send)
            return
        came: list[Message] = []
        more = True
        while more:
            came.append(await receive())
            more = came[-1]["type"] == "http.request" and came[-1].get("more_body", False)
        body = b"".join(message.get("body", b"") for message in came)
        error = refusal(body, kind, self.dropped.get(scope["path"], {}))
        if error is not None:
            await error.response()(scope, receive, send)
            return

        async def again() -> Message:
            return came.pop(0) if came else await receive()

        await self.app(scope, again, send)


def refusal(body: bytes, kind: Any, dropped: Unsupported) -> ApiError | None:
    """The answer to a body with a field that its class does not know, or that is dropped; None if there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    for name in dropped if isinstance(value, dict) else ():
        asked = value.get(name)
        if asked is not None and not any(same(asked, nothing) for nothing in dropped[name]):
            return wrong(f"{name} is not looked at by SGLang here; leave it out", name, "unsupported")
    found = next(_unknown(value, kind, ""), None)
    if found is None:
        return None
    path, near = found
    hint = f"; did you mean {near!r}?" if near else ""
    return wrong(f"{path} is a field that SGLang does not know{hint}", path, "unknown_field")


def _unknown(value: Any, annotation: Any, where: str) -> Iterator[tuple[str, str | None]]:
    """Paths of the fields that no class of the annotation has, each with a near name."""
    kinds = list(_members(annotation))
    if isinstance(value, list):
        elements = [one for kind in kinds if typing.get_origin(kind) is list for one in typing.get_args(kind)]
        for place, one in enumerate(value) if any(_holds_classes(element) for element in elements) else ():
            for element in elements:
                yield from _unknown(one, element, f"{where}{place}.")
        return
    classes = [kind for kind in kinds if _is_class(kind)]
    if not isinstance(value, dict) or not classes or any(_is_open(kind) for kind in kinds):
        return
    classes = [kind for kind in classes if _fits(value, kind)] or classes
    fields = {name: one for kind in classes for name, one in _fields(kind).items()}
    for name, inner in value.items():
        path = where + shown(name)[1:-1]
        if name in fields:
            yield from _unknown(inner, fields[name], f"{path}.")
        elif path not in READ_OTHERWISE and not _asks_for_nothing(name, inner):
            yield path, next(iter(difflib.get_close_matches(name, fields, n=1)), None)


def _asks_for_nothing(name: str, value: Any) -> bool:
    return value is None or any(
        name in kind.without_effect or any(same(value, nothing) for nothing in kind.unsupported.get(name, ()))
        for kind in OURS
    )


def _members(annotation: Any) -> Iterator[Any]:
    """What a value may be: the members of unions, without what is said about them."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _members(typing.get_args(annotation)[0])
    elif origin is typing.Union or type(annotation).__name__ == "UnionType":
        for one in typing.get_args(annotation):
            yield from _members(one)
    elif hasattr(annotation, "__value__"):  # a type alias
        yield from _members(annotation.__value__)
    else:
        yield annotation


def _holds_classes(annotation: Any) -> bool:
    return any(_is_class(kind) for kind in _members(annotation))


def _is_class(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


def _is_open(kind: Any) -> bool:
    """Takes objects of any names."""
    if kind in (Any, object, dict) or typing.get_origin(kind) is dict:
        return True
    return _is_class(kind) and getattr(kind, "model_config", {}).get("extra") == "allow"


@functools.cache
def _fields(kind: Any) -> Mapping[str, Any]:
    """The fields of a class and what each may be."""
    if issubclass(kind, BaseModel):
        return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    return {field.name: None for field in dataclasses.fields(kind)}  # nothing that is nested is a class


def _fits(value: Mapping[str, Any], kind: Any) -> bool:
    """Whether the value may be of the class, by the fields that tell classes apart: ``role`` and ``type``."""
    return all(value.get(name, choices[0]) in choices for name, choices in _told_apart_by(kind).items())


@functools.cache
def _told_apart_by(kind: Any) -> Mapping[str, tuple[Any, ...]]:
    fields = _fields(kind)
    told = {name: fields[name] for name in ("role", "type") if name in fields}
    return {name: typing.get_args(one) for name, one in told.items() if typing.get_origin(one) is typing.Literal}
