"""An engine without ranks that answers sums over asyncio: for the shapes of answers and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import cache
from typing import Any

from raylaunch.config import LaunchConfig
from raylaunch.errors import RaylaunchError, RequestFailed
from raylaunch.frontends.requests import Chunk
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.model.shape import ModelShape
from raylaunch.model.tokenizer import load_tokenizer
from raylaunch.model_check import check_model
from raylaunch.wire import TokenLogprob
from tests.serve.fake_engine import FakeEngine


class AnsweringEngine(FakeEngine):
    """Answers ``12+30=`` with ``42``, a token at a time, and anything else with ``?`` as ``+``.

    Attributes:
        gate: answers wait for it before each token.
        failure: raised in place of the token number ``fails_at``.
        running: requests that are being answered; ``asked``: all that ever were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: RaylaunchError | None = None
        self.fails_at = 0
        self.running: set[str] = set()
        self.asked_for: list[tuple[list[int], SamplingParams]] = []
        self.left_early = 0
        self._aborted: set[str] = set()

    @property
    def tokenizer(self) -> Any:
        return _tokenizer()

    @property
    def shape(self) -> ModelShape:
        return check_model(self.config)

    @property
    def max_context(self) -> int:
        return min(self.shape.max_positions, self.kv_tokens)

    async def astream(
        self, prompt: Sequence[int], params: SamplingParams | None = None, *, request_id: str = "r"
    ) -> AsyncIterator[Chunk]:
        params = params or SamplingParams()
        if refusal := self.now.refusal(self.config.recovery.while_rebuilding == "wait"):
            raise RequestFailed(refusal)
        self.asked_for.append((list(prompt), params))
        self.running.add(request_id)
        ended = False
        try:
            tokens = self._answer(prompt)
            kept = tokens[: params.max_new_tokens]
            for position in range(len(kept) + 1):
                await asyncio.sleep(0)
                await self.gate.wait()
                if self.failure is not None and position == self.fails_at:
                    failure, self.failure = self.failure, None
                    raise failure
                if request_id in self._aborted:
                    ended = True
                    yield Chunk(request_id, "", (), "abort")
                    return
                if position < len(kept):
                    yield self._chunk(request_id, kept[position], params)
            ended = True
            yield Chunk(request_id, "", (), "length" if len(tokens) > params.max_new_tokens else "stop")
        finally:
            self.left_early += not ended
            self.running.discard(request_id)

    def abort(self, request_id: str) -> bool:
        self._aborted.add(request_id)
        return request_id in self.running

    def _answer(self, prompt: Sequence[int]) -> list[int]:
        text = self.tokenizer.decode(list(prompt))
        left, _, right = text.partition("+")
        number = left.isdigit() and right.endswith("=") and right[:-1].isdigit()
        return self.tokenizer(str(int(left) + int(right[:-1])) if number else "+")["input_ids"]

    def _chunk(self, request_id: str, token: int, params: SamplingParams) -> Chunk:
        logprobs = None
        if params.logprobs is not None:
            logprobs = (TokenLogprob(token, -0.5, [(token, -0.5), (1, -1.5), (2, -2.5)][: params.logprobs]),)
        return Chunk(request_id, self.tokenizer.decode([token]), (token,), None, logprobs)


@cache
def _tokenizer() -> Any:
    return load_tokenizer(LaunchConfig.default())
