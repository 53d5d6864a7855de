"""What the engine can run, and which requests it must refuse. Plain Python, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raylaunch.protocol import RoundName
from raylaunch.wire import Submit


@dataclass(frozen=True)
class Limits:
    """Sizes that admission and batching go by.

    Attributes:
        prefill_shapes: token counts of the prefill round, ascending.
        decode_shapes: batch sizes of the decode round, ascending.
        max_running: requests that run at the same time, at most.
        max_context: tokens of prompt and output together, at most.
        capacity: rows of the KV cache.
        vocab_size: token ids are below it.
        eos_token_ids: tokens that end a request unless it ignores them.
    """

    prefill_shapes: tuple[int, ...]
    decode_shapes: tuple[int, ...]
    max_running: int
    max_context: int
    capacity: int
    vocab_size: int
    eos_token_ids: frozenset[int] = frozenset()

    def shapes_of(self, round_: RoundName) -> tuple[int, ...]:
        """The shapes of a round, ascending."""
        return self.prefill_shapes if round_ == "prefill" else self.decode_shapes

    def shape_for(self, round_: RoundName, rows: int) -> int:
        """The smallest shape of ``round_`` that holds ``rows``. Raises ValueError if none does."""
        for shape in self.shapes_of(round_):
            if shape >= rows:
                return shape
        raise ValueError(f"{rows} rows do not fit the largest {round_} shape, {self.shapes_of(round_)[-1]}")

    def rows_of(self, request: Submit) -> int:
        """Rows of the KV cache a request reserves: prompt and output, cut at the end of the context."""
        return min(len(request.prompt) + request.sampling.max_new_tokens, self.max_context)


def refusal(request: Submit, limits: Limits) -> str | None:
    """Why ``request`` can never be run, as a sentence; None if it can."""
    prompt, sampling = request.prompt, request.sampling
    if not prompt:
        return "the prompt is empty"
    if len(prompt) + min(1, sampling.max_new_tokens) > limits.max_context:
        return f"the prompt has {len(prompt)} tokens and the context ends at {limits.max_context}"
    for token in prompt:
        if not 0 <= token < limits.vocab_size:
            return f"token id {token} is outside the vocabulary of {limits.vocab_size}"
    if sampling.max_new_tokens < 0:
        return f"max_new_tokens = {sampling.max_new_tokens} must be at least 0"
    for token, _ in sampling.logit_bias:
        if not 0 <= token < limits.vocab_size:
            return f"logit_bias: token id {token} is outside the vocabulary of {limits.vocab_size}"
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        return f"temperature = {sampling.temperature} must be 0 (greedy) or a positive number"
    if not 0 < sampling.top_p <= 1:
        return f"top_p = {sampling.top_p} must be above 0 and at most 1"
    if sampling.top_k < 0:
        return f"top_k = {sampling.top_k} must be 0 (off) or positive"
    if (rows := limits.rows_of(request)) > limits.capacity:
        return (
            f"{len(prompt)} prompt tokens and up to {sampling.max_new_tokens} new ones need {rows} rows "
            f"of the KV cache, which has {limits.capacity}"
        )
    return None
