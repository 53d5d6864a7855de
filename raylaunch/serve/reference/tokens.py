"""From text to tokens and back, as SGLang's ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from raylaunch.serve.errors import wrong
from raylaunch.serve.reference.body import StrictRoute
from raylaunch.serve.reference.fields import check_fields
from raylaunch.serve.reference.openai import check_model_name
from raylaunch.serve.reference.openai_schema import DetokenizeRequest, TokenizeRequest
from raylaunch.serve.reference.prompts import beside_others, in_vocabulary, longest, require_few, tokenized
from raylaunch.serve.reference.streaming import json_answer
from raylaunch.serve.running import Serving

TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"


def build(serving: Serving) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=StrictRoute, tags=["SGLang"])
    engine = serving.engine

    @router.post(f"/v1{TOKENIZE}", include_in_schema=False)
    @router.post(TOKENIZE)
    async def tokenize(body: TokenizeRequest) -> Response:
        """The tokens of a text, or of several."""
        check_fields(body)
        check_model_name(serving, body.model)
        require_few(body.prompt.items, "prompt")
        special = body.add_special_tokens is not False
        tokens = await tokenized(engine, [str(text) for text in body.prompt.items], "prompt", special)
        counts = [len(one) for one in tokens]
        one, count = (tokens, counts) if body.prompt.batch else (tokens[0], counts[0])
        return json_answer({"tokens": one, "count": count, "max_model_len": longest(engine)})

    @router.post(f"/v1{DETOKENIZE}", include_in_schema=False)
    @router.post(DETOKENIZE)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of tokens, or several texts."""
        check_fields(body)
        check_model_name(serving, body.model)
        tokenizer = engine.tokenizer
        if tokenizer is None:
            raise wrong("this model has no tokenizer", "tokens")
        require_few(body.tokens.items, "tokens")
        skip = body.skip_special_tokens is not False
        each = [
            in_vocabulary(engine, [one for one in tokens if isinstance(one, int)], "tokens")
            for tokens in body.tokens.items
        ]
        texts = await beside_others(
            lambda: [str(tokenizer.decode(ids, skip_special_tokens=skip)) for ids in each], each
        )
        return json_answer({"text": texts if body.tokens.batch else texts[0]})

    return router
