"""SGLang's own interface: ``/generate``, ``/abort_request`` and what its clients ask beside them."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from raylaunch import __version__
from raylaunch.errors import RequestFailed
from raylaunch.frontends.requests import Chunk
from raylaunch.serve.errors import wrong
from raylaunch.serve.reference.body import StrictRoute
from raylaunch.serve.reference.fields import check_fields
from raylaunch.serve.reference.generate_schema import AbortRequest, GenerateRequest, SglangSampling
from raylaunch.serve.reference.prompts import require_biases, require_possible, require_room, token_ids
from raylaunch.serve.reference.streaming import WHOLE_OR_STREAMED, EventStream, answer, json_answer
from raylaunch.serve.running import Call, Serving, run_all

ENDPOINT = "generate"
GENERATE = "/generate"


def build(serving: Serving) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=StrictRoute, tags=["SGLang"])
    engine = serving.engine

    @router.put(GENERATE, include_in_schema=False)
    @router.post(GENERATE, responses=WHOLE_OR_STREAMED)
    async def generate(body: GenerateRequest, request: Request) -> Response:
        """Continues one prompt, or several. With ``stream``, events whose text and tokens are those so far."""
        asked = await _read(serving, body)
        if body.stream:
            return EventStream(_events(serving, asked))
        return await answer(request, _whole(serving, asked))

    @router.post("/abort_request", response_class=Response)
    async def abort_request(body: AbortRequest) -> Response:
        """Ends the request of that id, or all; unknown ids are no error. Its answer says ``abort``."""
        check_fields(body)
        for call in list(serving.running):
            if body.abort_all or body.rid in (call.group, call.request_id):
                with contextlib.suppress(RequestFailed):  # the ranks are gone, and so is the request
                    engine.abort(call.request_id)
        return Response()

    @router.get("/get_model_info", include_in_schema=False)
    @router.get("/model_info")
    async def model_info() -> Response:
        """Which model this is."""
        model = engine.config.model
        return json_answer(
            {
                "model_path": model.path,
                "tokenizer_path": model.tokenizer or model.path,
                "is_generation": True,
                "weight_version": model.revision or "default",
                "has_image_understanding": False,
                "has_audio_understanding": False,
                "architectures": [engine.shape.architecture],
                "max_context_length": engine.shape.max_positions,
            }
        )

    @router.get("/get_server_info", include_in_schema=False)
    @router.get("/server_info")
    async def server_info() -> Response:
        """How it is served."""
        config = engine.config
        return json_answer(
            {
                "version": __version__,
                "model_path": config.model.path,
                "served_model_name": engine.model_name,
                "tp_size": config.parallel.tensor_parallel_size,
                "nnodes": config.parallel.nodes,
                "dtype": config.model.dtype,
                "max_total_num_tokens": engine.kv_tokens,
                "max_running_requests": config.engine.max_running_requests,
                "max_queued_requests": config.engine.max_waiting_requests,
                "internal_states": [{"requests": engine.health(ask_ranks=False).requests}],
            }
        )

    @router.get("/flush_cache", include_in_schema=False)
    @router.post("/flush_cache", response_class=PlainTextResponse)
    async def flush_cache(timeout: float = 0.0) -> Response:
        """Does nothing, however long it may take: this engine keeps no prefix cache. SGLang's clients call it."""
        return PlainTextResponse("There is no prefix cache to flush.\n")

    return router


@dataclass(frozen=True)
class _CheckedRequest:
    """A request that has been checked."""

    calls: list[Call]
    batch: bool
    logprobs: bool
    texts: bool


@dataclass
class _Choice:
    """One choice as it grows. ``tokenizer`` makes the texts of log probabilities; None if they have none."""

    call: Call
    began: float
    tokenizer: Any
    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    tops: list[Any] = field(default_factory=list)
    finish: str | None = None
    matched: str | int | None = None

    def add(self, chunk: Chunk) -> None:
        self.texts.append(chunk.text)
        self.tokens.extend(chunk.token_ids)
        for one in chunk.logprobs or ():  # once: every event has all that came before
            self.logprobs.append(self._entry(one.token_id, one.logprob))
            self.tops.append([self._entry(*pair) for pair in one.top] or None)
        self.finish, self.matched = chunk.finish_reason, chunk.matched

    def _entry(self, token: int, logprob: float) -> list[Any]:
        return [logprob, token, self.tokenizer.decode([token]) if self.tokenizer is not None else None]

    def data(self, asked: _CheckedRequest) -> dict[str, Any]:
        self.texts = ["".join(self.texts)]
        meta: dict[str, Any] = {
            "id": self.call.request_id,
            "finish_reason": _finish(self.finish, len(self.tokens), self.matched),
            "prompt_tokens": len(self.call.prompt),
            "completion_tokens": len(self.tokens),
            "cached_tokens": 0,
        }
        if self.finish is not None:
            meta["e2e_latency"] = time.monotonic() - self.began
        if asked.logprobs:
            meta |= {
                "input_token_logprobs": [],
                "output_token_logprobs": self.logprobs,
                "output_top_logprobs": self.tops,
            }
        found = {"text": self.texts[0], "output_ids": self.tokens, "meta_info": meta}
        return {**found, "index": self.call.index} if asked.batch else found


async def _read(serving: Serving, body: GenerateRequest) -> _CheckedRequest:
    """Checks everything before anything is started. Raises ApiError."""
    engine = serving.engine
    check_fields(body)
    for name in ("top_logprobs_num", "return_text_in_logprobs"):
        if getattr(body, name) and not body.return_logprob:
            raise wrong(f"{name} needs return_logprob to be true", name)
    prompts = body.text if body.text is not None else body.input_ids
    assert prompts is not None
    param = "text" if body.text is not None else "input_ids"
    samplings = _one_each(body.sampling_params or SglangSampling(), len(prompts.items), prompts.batch)
    require_possible(engine, sum(sampling.n or 1 for sampling in samplings), param)
    for sampling in samplings:
        if None not in (sampling.seed, sampling.sampling_seed) and sampling.seed != sampling.sampling_seed:
            raise wrong("seed and sampling_seed are one thing by two names: give one", "sampling_params.seed")
        require_biases(engine, sampling.logit_bias)
    groups = _ids(body.rid, len(prompts.items), prompts.batch)
    logprobs = (body.top_logprobs_num or 0) if body.return_logprob else None
    calls: list[Call] = []
    for ids, sampling, group in zip(await token_ids(engine, prompts.items, param), samplings, groups, strict=True):
        require_room(engine, ids, sampling.params(None, 0, {}).max_new_tokens, param)
        for choice in range(sampling.n or 1):
            name = group if (sampling.n or 1) == 1 else f"{group}-{choice}"
            params = sampling.params(logprobs, choice, engine.sampling_defaults)
            calls.append(Call(len(calls), ids, params, name, group))
    batch = prompts.batch or len(calls) > 1
    return _CheckedRequest(calls, batch, bool(body.return_logprob), bool(body.return_text_in_logprobs))


def _one_each(given: SglangSampling | list[SglangSampling], prompts: int, batch: bool) -> list[SglangSampling]:
    if not isinstance(given, list):
        return [given] * prompts
    if not batch or len(given) != prompts:
        raise wrong(f"sampling_params is a list of {len(given)} for {prompts} prompts", "sampling_params")
    return given


def _ids(given: str | list[str] | None, prompts: int, batch: bool) -> list[str]:
    if given is None:
        return [secrets.token_hex(16) for _ in range(prompts)]
    if isinstance(given, str):
        return [f"{given}_{number}" for number in range(prompts)] if batch else [given]
    if not batch or len(given) != prompts or len(set(given)) != prompts:
        raise wrong("rid must be one text, or a list with a different one for each prompt", "rid")
    return given


def _choices(serving: Serving, asked: _CheckedRequest) -> list[_Choice]:
    began, tokenizer = time.monotonic(), serving.engine.tokenizer if asked.texts else None
    return [_Choice(call, began, tokenizer) for call in asked.calls]


async def _whole(serving: Serving, asked: _CheckedRequest) -> Any:
    answers = _choices(serving, asked)
    async for call, chunk in run_all(serving, ENDPOINT, asked.calls):
        answers[call.index].add(chunk)
    found = [one.data(asked) for one in answers]
    for one in found:
        one.pop("index", None)
    return found if asked.batch else found[0]


async def _events(serving: Serving, asked: _CheckedRequest) -> AsyncGenerator[Any, None]:
    answers = _choices(serving, asked)
    chunks = run_all(serving, ENDPOINT, asked.calls)
    try:
        async for call, chunk in chunks:
            answers[call.index].add(chunk)
            yield answers[call.index].data(asked)
    finally:
        await chunks.aclose()


def _finish(reason: str | None, tokens: int, matched: str | int | None) -> dict[str, Any] | None:
    if reason is None:
        return None
    if reason == "length":
        return {"type": "length", "length": tokens}
    if reason == "abort":
        return {"type": "abort", "message": "the request was aborted"}
    return {"type": reason, "matched": matched}
