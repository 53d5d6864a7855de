"""Reads JSON bodies strictly: whatever is not plain JSON of a sane size of its parts is a 400, never a 500."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from raylaunch.serve.errors import ApiError, shown, wrong

MAX_DEPTH = 64


class StrictRoute(APIRoute):
    """A route whose body is read by :func:`parse`, and that refuses what its path is followed by.
    ``APIRouter(route_class=StrictRoute)``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        takes_body = self.body_field is not None
        named = {field.alias for field in self.dependant.query_params}

        async def strict(request: Request) -> Response:
            if takes_body:
                _require_json(request)
            _refuse_query(request, named)
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parse(await self.body())


def _require_json(request: Request) -> None:
    kind = request.headers.get("content-type", "")
    if kind.split(";", 1)[0].strip().lower() != "application/json":
        found = f"is {kind[:80]!r}" if kind else "is missing"
        raise ApiError(415, f"the content type {found}; it must be application/json", code="unsupported_media_type")


def _refuse_query(request: Request, named: Collection[str]) -> None:
    for name in request.query_params:
        if name not in named:
            message = f"{shown(name)} is in the query, where nothing is looked for: fields go into a JSON body"
            raise wrong(message, shown(name)[1:-1], "unknown_field")


def parse(data: bytes) -> Any:
    """The JSON value of ``data``. Raises :class:`ApiError` (400) if it is none, or nested deeper than 64."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise wrong(f"the body is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from None
    except json.JSONDecodeError as error:
        raise wrong(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # a constant, a key that is there again, or an integer of more digits than Python reads
        raise wrong(f"the body is not JSON that can be used: {error}") from None
    _check_depth(value)
    if "\\ud" in text or "\\uD" in text:
        _check_surrogates(value)
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(key)} is there more than once")
    return found


def _too_deep() -> ApiError:
    return wrong(f"the body is nested deeper than {MAX_DEPTH} levels")


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inside = (inner for item in level for inner in (item.values() if isinstance(item, dict) else item))
        level = [inner for inner in inside if isinstance(inner, dict | list)]
        if not level:
            return
    raise _too_deep()


def _check_surrogates(value: Any) -> None:
    """Half of a surrogate pair can be written in JSON, and is no character that could be encoded."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise wrong("the body holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None
