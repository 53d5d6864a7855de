"""Prompts as they come in requests, and as token ids that have been checked against the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import PlainValidator, WithJsonSchema

from raylaunch.serve.errors import shown, wrong

if TYPE_CHECKING:
    from raylaunch.engine import EngineBase

LONG_TEXT = 20_000  # characters; beside the event loop from here on
EACH_TEXT = 64  # characters that a text costs beyond its own
MAX_TEXTS = 1024  # of one request that only asks for tokens, or for their text
CONTEXT = "context_length_exceeded"
T = TypeVar("T")
_tokenizing = ThreadPoolExecutor(1, thread_name_prefix="raylaunch-tokenizer")


@dataclass(frozen=True)
class Prompts:
    """One prompt or several, each text or token ids. ``batch``: they came as a list, and so must the answer."""

    items: list[str | list[int]]
    batch: bool


def read_prompts(value: Any) -> Prompts:
    """``text``, ``[text, ...]``, ``[id, ...]`` or ``[[id, ...], ...]``. Raises ValueError."""
    if isinstance(value, str):
        return Prompts([value], False)
    if not isinstance(value, list):
        raise ValueError("must be text, a list of texts, a list of token ids, or a list of lists of token ids")
    if not value:
        raise ValueError("is empty")
    if type(value[0]) is int:
        _require_ids(value, "")
        return Prompts([value], False)
    for position, item in enumerate(value):
        if type(item) is not type(value[0]) or not isinstance(item, str | list):
            raise ValueError(f"item {position} is {_kind(item)}; all must be texts, or all lists of token ids")
        if isinstance(item, list):
            _require_ids(item, f"item {position}, ")
    return Prompts(value, True)


def _read_texts(value: Any) -> Prompts:
    prompts = read_prompts(value)
    if not isinstance(prompts.items[0], str):
        raise ValueError("must be text or a list of texts; token ids go into input_ids")
    return prompts


def _read_ids(value: Any) -> Prompts:
    prompts = read_prompts(value)
    if isinstance(prompts.items[0], str):
        raise ValueError("must be token ids or a list of lists of token ids")
    return prompts


def _require_ids(ids: list[Any], where: str) -> None:
    for position, token in enumerate(ids):
        if type(token) is not int:
            raise ValueError(f"{where}token {position} is {_kind(token)}; token ids are integers")


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else shown(value)


_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_BATCH = {"type": "array", "items": _IDS, "minItems": 1}

Prompt = Annotated[
    Prompts, PlainValidator(read_prompts), WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS, _IDS, _BATCH]})
]
Text = Annotated[Prompts, PlainValidator(_read_texts), WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS]})]
Ids = Annotated[Prompts, PlainValidator(_read_ids), WithJsonSchema({"anyOf": [_IDS, _BATCH]})]


async def token_ids(
    engine: EngineBase, prompts: Sequence[str | list[int]], param: str, *, special: bool = True
) -> list[list[int]]:
    """Prompts as token ids that the model has.

    Args:
        param: the request's field, for messages.
        special: add what the tokenizer adds to every text; a chat template has done so already.
    Raises:
        ApiError: 400.
    """
    texts = iter(await tokenized(engine, [one for one in prompts if isinstance(one, str)], param, special))
    found = [next(texts) if isinstance(one, str) else one for one in prompts]
    for ids in found:
        if not ids:
            raise wrong("the prompt is empty: it needs at least one token", param)
        in_vocabulary(engine, ids, param)
    return found


def in_vocabulary(engine: EngineBase, prompt: list[int], param: str) -> list[int]:
    """The same tokens, all of them the model's. Raises :class:`ApiError` (400)."""
    if prompt and not 0 <= min(prompt) <= max(prompt) < engine.shape.vocab_size:
        last = engine.shape.vocab_size - 1
        position, token = next((at, token) for at, token in enumerate(prompt) if not 0 <= token <= last)
        raise wrong(f"token {position} of the prompt is {shown(token)}: token ids are integers from 0 to {last}", param)
    return prompt


async def tokenized(engine: EngineBase, texts: Sequence[str], param: str, special: bool) -> list[list[int]]:
    """Texts as token ids, maybe none. Raises :class:`ApiError` (400) if the model has no tokenizer."""
    tokenizer = engine.tokenizer
    if texts and tokenizer is None:
        raise wrong("this model has no tokenizer: give the prompt as token ids", param)

    def work() -> list[list[int]]:
        return [list(tokenizer(text, add_special_tokens=special)["input_ids"]) for text in texts]

    return await beside_others(work, texts)


async def beside_others(work: Callable[[], T], items: Sequence[Sized]) -> T:
    """What ``work`` returns; on a thread of its own if it is long, so that the answers of others go on.

    Args:
        items: what it works on: texts, or lists of tokens.
    """
    if sum(len(one) + EACH_TEXT for one in items) < LONG_TEXT:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_tokenizing, work)


def require_few(items: Sequence[Any], param: str) -> None:
    """Refuses more texts than one request may ask about. Raises :class:`ApiError` (400)."""
    if len(items) > MAX_TEXTS:
        raise wrong(f"{len(items)} are asked about at once; at most {MAX_TEXTS}", param)


def longest(engine: EngineBase) -> int:
    """Most tokens of a prompt and its answer together."""
    return engine.max_context


def require_room(engine: EngineBase, prompt: list[int], new_tokens: int, param: str) -> None:
    """Refuses what the engine could never hold. Raises :class:`ApiError` (400)."""
    limit = longest(engine)
    if len(prompt) + new_tokens > limit:
        raise wrong(
            f"the prompt has {len(prompt)} tokens and {new_tokens} more are asked for: together at most {limit}",
            param,
            CONTEXT,
        )


def require_biases(engine: EngineBase, given: Mapping[str, float] | None) -> None:
    """Refuses biases of what are no tokens of the model. Raises :class:`ApiError` (400)."""
    last = engine.shape.vocab_size - 1
    for token in given or ():
        if not (token.isascii() and token.isdecimal() and len(token) < 10 and int(token) <= last):
            message = f"logit_bias has the key {shown(token)}: its keys are token ids, from 0 to {last}"
            raise wrong(message, "logit_bias")


def require_possible(engine: EngineBase, choices: int, param: str) -> None:
    """Refuses more choices than may run and wait at the same time. Raises :class:`ApiError` (400)."""
    limit = engine.config.engine.max_running_requests + engine.config.engine.max_waiting_requests
    if choices > limit:
        raise wrong(f"{choices} choices are asked for at once; at most {limit} can run and wait", param)
