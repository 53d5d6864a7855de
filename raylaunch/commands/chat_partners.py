"""Whom a chat is with: an engine of this process, or a server that speaks OpenAI's interface."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from raylaunch.config.api_key import key_of_environment
from raylaunch.errors import ConfigError, RequestError, RequestFailed
from raylaunch.model.tokenizer import chat_template_of
from raylaunch.values.json_text import from_json

if TYPE_CHECKING:
    from raylaunch.engine import EngineBase
    from raylaunch.frontends.sampling import SamplingParams

Messages = list[dict[str, str]]
ANSWER_TOKENS = 1024
CONNECT_S, SILENT_S = 10.0, 600.0


class Partner(Protocol):
    """Answers conversations."""

    @property
    def name(self) -> str: ...

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        """The answer as it comes. Closing it ends the request.

        Raises:
            RequestError, RequestFailed: there will be none.
        """

    def require_alive(self) -> None:
        """Raises :class:`RequestFailed` if nothing will ever be answered again."""


class OwnEngine:
    """An engine of this process."""

    def __init__(self, engine: EngineBase, params: SamplingParams) -> None:
        self._engine, self._params = engine, params
        self._template = chat_template_of(engine.config.serve)

    @property
    def name(self) -> str:
        return self._engine.model_name

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        engine, params = self._engine, self._params
        prompt = self._prompt(messages)
        left = engine.max_context - len(prompt)
        if left < 1:
            raise RequestError(f"the conversation has {len(prompt)} tokens, of at most {engine.max_context}: /reset")
        if "max_new_tokens" not in params.model_fields_set:
            params = params.model_copy(update={"max_new_tokens": min(ANSWER_TOKENS, left)})
        for chunk in engine.stream(prompt, params):
            yield chunk.text

    def require_alive(self) -> None:
        health = self._engine.health(ask_ranks=False)
        if health.condition.final:
            raise RequestFailed(health.reason)

    def _prompt(self, messages: Messages) -> list[int]:
        import jinja2

        tokenizer = self._engine.tokenizer
        if tokenizer is None or not (self._template or getattr(tokenizer, "chat_template", None)):
            raise RequestError("this model has no chat template; serve.chat_template sets one")
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise RequestError(f"the chat template refuses this: {error}") from None
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class Server:
    """A server that speaks OpenAI's interface: raylaunch's, or any other.

    Args:
        url: without a slash or ``/v1`` at its end.
    """

    def __init__(self, url: str, name: str, params: SamplingParams) -> None:
        self.url, self.name, self._params = url, name, params

    @classmethod
    def at(cls, url: str, params: SamplingParams) -> Server:
        """Asks which model the server has. Raises :class:`ConfigError` if none answers."""
        url = url.rstrip("/").removesuffix("/v1")
        try:
            with _asked(f"{url}/v1/models", None, CONNECT_S) as answer:
                name = str(json.load(answer)["data"][0]["id"])
        except (RequestError, RequestFailed, OSError, http.client.HTTPException) as error:  # the last two: it broke off
            raise ConfigError("MODEL", url, f"no model can be asked there: {error}") from None
        except (ValueError, LookupError, TypeError):
            raise ConfigError("MODEL", url, "is no server of a model: its /v1/models is none of OpenAI's") from None
        return cls(url, name, params)

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        said = self._params.model_fields_set
        body: dict[str, Any] = {"model": self.name, "messages": messages, "stream": True}
        if "max_new_tokens" in said:
            body["max_tokens"] = self._params.max_new_tokens
        if "temperature" in said:
            body["temperature"] = self._params.temperature
        with _asked(f"{self.url}/v1/chat/completions", body, SILENT_S) as answer:
            try:
                for line in answer:
                    data = line.decode().removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    if line.startswith(b"data:"):
                        yield _piece(from_json(data))
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise RequestFailed(f"the answer broke off: {error}") from None
            except (AttributeError, TypeError):
                raise RequestFailed(f"the answer has an event that is none of OpenAI's: {data[:200]}") from None
        raise RequestFailed("the answer broke off: the server has left")

    def require_alive(self) -> None:
        """A server may come back."""


def _piece(event: Mapping[str, Any]) -> str:
    if "error" in event:
        raise RequestFailed(_message(event))
    # Servers differ in what they leave out, and what they say is null.
    return "".join((choice.get("delta") or {}).get("content") or "" for choice in event.get("choices") or ())


def _asked(url: str, body: Any, timeout_s: float) -> Any:
    """The open answer. Raises :class:`RequestError` if it was refused, :class:`RequestFailed` if there is none."""
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        if (key := key_of_environment()) is not None:
            request.add_unredirected_header("Authorization", f"Bearer {key}")  # for this host and no other
        return urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(1 << 16).decode("utf-8", "replace")
        try:
            said = _message(from_json(text))
        except (ValueError, TypeError, AttributeError):
            said = text.strip()[:200] or error.reason
        kind = RequestError if error.code < 500 else RequestFailed
        raise kind(f"{error.code} {said}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RequestFailed(f"{getattr(error, 'reason', None) or error}") from None


def _message(data: Mapping[str, Any]) -> str:
    error = data.get("error", data)
    return str(error.get("message", error) if isinstance(error, Mapping) else error)
