"""Every error that a client sees, in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from raylaunch.errors import EngineBusy, RaylaunchError, RequestError
from raylaunch.serve.running import GroupUnavailable

INVALID, UNAUTHORIZED, NOT_FOUND = "invalid_request_error", "authentication_error", "not_found_error"
BUSY, UNAVAILABLE, SERVER = "rate_limit_error", "service_unavailable_error", "server_error"
SHOWN = 80
RETRY_AFTER_S = "1"
_KEY = re.compile("[a-z_][a-z0-9_]*")
_TYPES = {401: UNAUTHORIZED, 404: NOT_FOUND, 429: BUSY, 500: SERVER, 503: UNAVAILABLE}


class ErrorBody(BaseModel):
    """What went wrong.

    Attributes:
        message: in words.
        type: what kind of error.
        param: the request's field that is wrong.
        code: for programs.
    """

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorBody


class ApiError(HTTPException):
    """An answer other than 200. Its ``detail`` is the message."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        """The error as it is sent."""
        kind = _TYPES.get(self.status_code, INVALID if self.status_code < 500 else SERVER)
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer."""
        return Response(msgspec.json.encode(self.body()), self.status_code, self.headers, "application/json")


def wrong(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that asks for something that cannot be: 400."""
    return ApiError(400, message, param=param, code=code)


def api_error(error: RaylaunchError) -> ApiError:
    """The answer to an engine's error."""
    if isinstance(error, EngineBusy):
        return ApiError(429, str(error), code="engine_busy", headers={"retry-after": RETRY_AFTER_S})
    if isinstance(error, RequestError):
        return wrong(str(error))
    if isinstance(error, GroupUnavailable):
        return unavailable(str(error))
    return ApiError(500, str(error), code="request_failed")


def unavailable(message: str) -> ApiError:
    """The answer while there are no ranks, or if they were lost before there was another."""
    return ApiError(503, message, code="engine_unavailable", headers={"retry-after": RETRY_AFTER_S})


def validation_error(errors: Sequence[Any]) -> ApiError:
    """One of pydantic's errors, of at least one. Values are shown only if they are short and plain."""
    # Of a union's members the one that fits best is the one that failed deepest.
    about = _place(errors[0])[:1]
    problem = max((error for error in errors if _place(error)[:1] == about), key=lambda error: len(_place(error)))
    key = ".".join(_place(problem))
    message = str(problem["msg"]).removeprefix("Value error, ")
    value = problem.get("input")
    found = f" = {shown(value)}" if isinstance(value, str | int | float | None) and problem["type"] != "missing" else ""
    text = f"{key}{found}: {message[:1].lower() + message[1:]}" if key else message
    return wrong(text, key or None)


def _place(error: Any) -> list[str]:
    """Where the error is in the request. Between its keys pydantic names the members of unions: those are left out."""
    return [str(part) for part in error["loc"] if isinstance(part, int) or (part != "body" and _is_key(part))]


def _is_key(part: str) -> bool:
    return _KEY.fullmatch(part) is not None and part not in ("str", "int", "bool", "float")


def shown(value: object) -> str:
    """A value for a message: in Python's spelling, shortened."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a very large number"
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def internal() -> ApiError:
    """The answer to an error of the server's own."""
    return ApiError(500, "an error inside the server; its log says more", code="internal_error")


async def unexpected(request: Request, error: Exception) -> Response:
    """The answer to any other exception. Starlette raises it again after that, so the server's log has it."""
    return internal().response()


def install(app: FastAPI) -> None:
    """Makes ``app`` answer every error in OpenAI's shape."""

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error, ApiError):
            return error.response()
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no {shown(request.url.path)} here"
        elif error.status_code == 405:
            message = f"{shown(request.url.path)} does not answer {request.method}"
        elif message == HTTPStatus(error.status_code).phrase:
            message = message.lower()
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return validation_error(list(error.errors())).response()

    async def engine(request: Request, error: Exception) -> Response:
        assert isinstance(error, RaylaunchError)
        return api_error(error).response()

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(RaylaunchError, engine)
    app.add_exception_handler(Exception, unexpected)
