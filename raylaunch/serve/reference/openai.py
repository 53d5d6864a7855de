"""OpenAI's endpoints: ``/v1/completions``, ``/v1/chat/completions``, ``/v1/models``."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from raylaunch.serve.errors import ApiError, shown, wrong
from raylaunch.serve.reference.body import StrictRoute
from raylaunch.serve.reference.chat_template import ChatTemplate
from raylaunch.serve.reference.fields import check_fields
from raylaunch.serve.reference.openai_answers import ChatAnswer, CompletionAnswer, events, whole
from raylaunch.serve.reference.openai_schema import (
    CHAT_TOKENS,
    COMPLETION_TOKENS,
    DEFAULT_MODEL,
    ChatRequest,
    Common,
    CompletionRequest,
)
from raylaunch.serve.reference.prompts import longest, require_biases, require_possible, require_room, token_ids
from raylaunch.serve.reference.streaming import WHOLE_OR_STREAMED, EventStream, answer, json_answer
from raylaunch.serve.running import Call, Serving

MAX_SCORED = 1 << 19  # log probabilities of prompts, each of some hundred bytes until the answer ends
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def build(serving: Serving) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])
    engine, template = serving.engine, ChatTemplate.from_settings(serving.settings)

    @router.post(COMPLETIONS, responses=WHOLE_OR_STREAMED)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continues one prompt, or several."""
        _check(serving, body)
        if body.best_of not in (None, body.n or 1):
            raise wrong(f"best_of = {body.best_of} must be n = {body.n or 1}: all choices are given", "best_of")
        require_possible(engine, (body.n or 1) * len(body.prompt.items), "prompt")
        prompts = await token_ids(engine, body.prompt.items, "prompt")
        limit = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        calls = _calls(serving, body, prompts, limit, body.logprobs, "cmpl")
        if body.echo and body.logprobs is not None:
            calls = _scoring(calls, body.logprobs)
        form = CompletionAnswer(serving, calls, body.logprobs is not None, body.prompt.items if body.echo else None)
        if body.stream:
            return EventStream(events(serving, "completions", form, body.stream_options))
        return await answer(request, whole(serving, "completions", form))

    @router.post(CHAT, responses=WHOLE_OR_STREAMED)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answers a conversation."""
        _check(serving, body)
        if body.top_logprobs and not body.logprobs:
            raise wrong("top_logprobs needs logprobs to be true", "top_logprobs")
        if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
            raise wrong("max_tokens and max_completion_tokens are one thing by two names: give one", "max_tokens")
        require_possible(engine, body.n or 1, "n")
        text = template.render(engine.tokenizer, body)
        (prompt,) = await token_ids(engine, [text], "messages", special=False)
        limit = body.max_completion_tokens or body.max_tokens
        if limit is None:
            limit = max(1, min(CHAT_TOKENS, longest(engine) - len(prompt)))
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        calls = _calls(serving, body, [prompt], limit, logprobs, "chatcmpl", "messages")
        form = ChatAnswer(serving, calls, bool(body.logprobs))
        if body.stream:
            return EventStream(events(serving, "chat", form, body.stream_options))
        return await answer(request, whole(serving, "chat", form))

    @router.post("/v1/responses", include_in_schema=False)
    async def responses() -> Response:
        """OpenAI's newer interface, which keeps conversations: its clients have the older one too."""
        raise ApiError(404, "there is no /v1/responses here: use /v1/chat/completions", code="not_found")

    @router.get("/v1/models")
    async def models() -> Response:
        """The model that is served."""
        return json_answer({"object": "list", "data": [_model(serving)]})

    @router.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        """The model of that name."""
        _require_model(serving, model)
        return json_answer(_model(serving))

    return router


def _scoring(calls: list[Call], logprobs: int) -> list[Call]:
    """The calls, with the log probabilities of their prompts. Raises ApiError (400) if those are too many to be kept
    until the answer ends."""
    wanted = sum(len(call.prompt) for call in calls) * (logprobs + 1)
    if wanted > MAX_SCORED:
        message = f"echo with logprobs = {logprobs} asks for {wanted} log probabilities; at most {MAX_SCORED}"
        raise wrong(message, "logprobs")
    more = {"prompt_logprobs": logprobs}
    return [replace(call, params=call.params.model_copy(update=more)) for call in calls]


def _check(serving: Serving, body: Common) -> None:
    check_fields(body)
    if body.stream_options is not None and not body.stream:
        raise wrong("stream_options needs stream to be true", "stream_options")
    check_model_name(serving, body.model)


def check_model_name(serving: Serving, name: str | None) -> None:
    """Refuses the name of another model. Raises :class:`ApiError` (404)."""
    if name is not None and name != DEFAULT_MODEL:
        _require_model(serving, name)


def _require_model(serving: Serving, name: str) -> None:
    engine = serving.engine
    known = (engine.model_name, engine.config.model.path)
    if name not in known:
        message = f"the model {shown(name)} does not exist; this server has {engine.model_name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


def _model(serving: Serving) -> dict[str, Any]:
    engine = serving.engine
    return {
        "id": engine.model_name,
        "object": "model",
        "created": serving.created,
        "owned_by": "raylaunch",
        "root": engine.config.model.path,
        "max_model_len": longest(engine),
    }


def _calls(
    serving: Serving,
    body: Common,
    prompts: list[list[int]],
    new_tokens: int,
    logprobs: int | None,
    kind: str,
    param: str = "prompt",
) -> list[Call]:
    """The choices: ``n`` of the first prompt, then of the second, and so on. Raises ApiError (400)."""
    require_biases(serving.engine, body.logit_bias)
    choices = body.n or 1
    for prompt in prompts:
        require_room(serving.engine, prompt, new_tokens, param)
    group = body.rid or f"{kind}-{secrets.token_hex(12)}"
    single = choices * len(prompts) == 1
    calls = []
    for index in range(choices * len(prompts)):
        params = body.params(new_tokens, logprobs, index % choices, serving.engine.sampling_defaults)
        name = group if single else f"{group}-{index}"
        calls.append(Call(index, prompts[index // choices], params, name, group))
    return calls
