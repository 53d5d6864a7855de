"""Answers in OpenAI's shapes, whole and as streamed pieces."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from raylaunch.frontends.requests import Chunk
from raylaunch.frontends.vocabulary import vocabulary_of
from raylaunch.serve.reference.token_text import TextOffsets
from raylaunch.serve.running import Call, Serving, run_all
from raylaunch.wire import TokenLogprob

if TYPE_CHECKING:
    from raylaunch.serve.reference.openai_schema import StreamOptions


NOTHING = math.nan
"""The log probability of a prompt's first token, before which there is nothing."""


class Form:
    """How one endpoint spells its answers. Keeps what the choices have so far.

    Args:
        calls: the choices, by index.
        logprobs: whether log probabilities were asked for.
    """

    whole_object = piece_object = ""

    def __init__(self, serving: Serving, calls: Sequence[Call], logprobs: bool) -> None:
        self.calls, self.logprobs = calls, logprobs
        self.created, self.model = int(time.time()), serving.engine.model_name
        tokenizer = serving.engine.tokenizer
        self.vocabulary = None if tokenizer is None else vocabulary_of(tokenizer)
        self.generated = 0

    def head(self, kind: str) -> dict[str, Any]:
        """What every answer and every piece begins with."""
        return {"id": self.calls[0].group, "object": kind, "created": self.created, "model": self.model}

    def opening(self, call: Call) -> dict[str, Any] | None:
        """What a stream says of a choice before its first token."""
        return None

    def piece(self, call: Call, chunk: Chunk) -> dict[str, Any]:
        """A streamed choice."""
        raise NotImplementedError

    def choice(self, call: Call, chunks: list[Chunk]) -> dict[str, Any]:
        """A whole choice."""
        raise NotImplementedError

    def usage(self) -> dict[str, int]:
        """Tokens used; a prompt counts once, however many choices it has."""
        prompts = {id(call.prompt): len(call.prompt) for call in self.calls}
        prompt = sum(prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.generated,
            "total_tokens": prompt + self.generated,
        }

    def token(self, token: int) -> str:
        """A token as text; one that is part of a character by its bytes."""
        return f"token_id:{token}" if self.vocabulary is None else self.vocabulary.label(token)


class CompletionAnswer(Form):
    """``/v1/completions``.

    Args:
        echo: the prompts as they came, where they are to come before the answers.
    """

    whole_object = piece_object = "text_completion"

    def __init__(
        self,
        serving: Serving,
        calls: Sequence[Call],
        logprobs: bool,
        echo: Sequence[str | list[int]] | None = None,
    ) -> None:
        super().__init__(serving, calls, logprobs)
        self._offsets = [
            TextOffsets(self.vocabulary, () if echo else call.prompt) if self.vocabulary else None for call in calls
        ]
        self._choices = len(calls) // len(echo or calls)  # of one prompt
        self._echo = [self._text(prompt, serving.engine.tokenizer) for prompt in echo or ()]
        self._echoed = set[int]()

    def piece(self, call: Call, chunk: Chunk) -> dict[str, Any]:
        return self.choice(call, [chunk])

    def choice(self, call: Call, chunks: list[Chunk]) -> dict[str, Any]:
        text = "".join(chunk.text for chunk in chunks)
        entries = [one for chunk in chunks for one in chunk.logprobs or ()]
        if self._echo:
            if call.index not in self._echoed:
                self._echoed.add(call.index)
                text = self._echo[call.index // self._choices] + text
                entries = [TokenLogprob(call.prompt[0], NOTHING, []), *(chunks[0].prompt_logprobs or ()), *entries]
            if (ended := chunks[-1].matched_logprob) is not None:  # who scores prompts counts on one token behind them
                entries.append(ended)
        logprobs = self._logprobs(call, entries) if self.logprobs else None
        return {"index": call.index, "text": text, "logprobs": logprobs, **ending(chunks[-1])}

    def _logprobs(self, call: Call, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        offsets = self._offsets[call.index]
        return {
            "tokens": [self.token(one.token_id) for one in entries],
            "token_logprobs": [None if one.logprob is NOTHING else one.logprob for one in entries],
            "top_logprobs": [{self.token(token): value for token, value in one.top} or None for one in entries],
            "text_offset": [offsets.next(one.token_id) if offsets else 0 for one in entries],
        }

    @staticmethod
    def _text(prompt: str | list[int], tokenizer: Any) -> str:
        if isinstance(prompt, str):
            return prompt
        return "" if tokenizer is None else str(tokenizer.decode(prompt, skip_special_tokens=True))


class ChatAnswer(Form):
    """``/v1/chat/completions``."""

    whole_object, piece_object = "chat.completion", "chat.completion.chunk"

    def opening(self, call: Call) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": call.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(self, call: Call, chunk: Chunk) -> dict[str, Any]:
        delta = {"content": chunk.text} if chunk.text or chunk.finish_reason is None else {}
        return {
            "index": call.index,
            "delta": delta,
            "logprobs": self._logprobs(chunk.logprobs or ()) if self.logprobs else None,
            **ending(chunk),
        }

    def choice(self, call: Call, chunks: list[Chunk]) -> dict[str, Any]:
        entries = [one for chunk in chunks for one in chunk.logprobs or ()]
        return {
            "index": call.index,
            "message": {"role": "assistant", "content": "".join(chunk.text for chunk in chunks), "refusal": None},
            "logprobs": self._logprobs(entries) if self.logprobs else None,
            **ending(chunks[-1]),
        }

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        found = [
            {
                **self._entry(one.token_id, one.logprob),
                "top_logprobs": [self._entry(token, value) for token, value in one.top],
            }
            for one in entries
        ]
        return {"content": found, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.token(token)
        data = text.encode() if self.vocabulary is None else self.vocabulary.bytes_of(token)
        return {"token": text, "logprob": logprob, "bytes": list(data)}


def ending(chunk: Chunk) -> dict[str, Any]:
    """How a choice ended; ``matched_stop``, as SGLang calls it, is there where a stop string or a token ended it."""
    matched = {} if chunk.matched is None else {"matched_stop": chunk.matched}
    return {"finish_reason": chunk.finish_reason, **matched}


async def whole(serving: Serving, endpoint: str, form: Form) -> dict[str, Any]:
    """The answer when all choices have ended."""
    chunks: list[list[Chunk]] = [[] for _ in form.calls]
    async for call, chunk in run_all(serving, endpoint, form.calls):
        chunks[call.index].append(chunk)
        form.generated += len(chunk.token_ids)
    choices = [form.choice(call, chunks[call.index]) for call in form.calls]
    return {**form.head(form.whole_object), "choices": choices, "usage": form.usage()}


async def events(
    serving: Serving, endpoint: str, form: Form, options: StreamOptions | None
) -> AsyncGenerator[dict[str, Any], None]:
    """The answer piece by piece. Pieces that add nothing that a client would see are left out."""
    at_end, always = (bool(options.include_usage), bool(options.continuous_usage_stats)) if options else (False, False)
    bare = form.head(form.piece_object)

    def piece(choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": form.usage() if always else None} if at_end or always else {}
        return {**bare, **usage, "choices": [choice]}

    opened: set[int] = set()
    chunks = run_all(serving, endpoint, form.calls)
    try:
        async for call, chunk in chunks:
            form.generated += len(chunk.token_ids)
            if call.index not in opened:
                opened.add(call.index)
                opening = form.opening(call)
                if opening is not None:
                    yield piece(opening)
            if chunk.text or chunk.finish_reason is not None or (form.logprobs and chunk.token_ids):
                yield piece(form.piece(call, chunk))
        if at_end:
            yield {**bare, "choices": [], "usage": form.usage()}
    finally:
        await chunks.aclose()
