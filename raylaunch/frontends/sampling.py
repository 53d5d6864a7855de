"""What a caller may ask of one request."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from raylaunch.errors import RequestError
from raylaunch.wire import Sampling

TokenId = Annotated[int, Field(ge=0, lt=1 << 31, strict=True)]
Bias = Annotated[float, Field(ge=-1e30, le=1e30)]  # beyond, 32 bits are not enough for what a temperature makes of it


class SamplingParams(BaseModel):
    """How tokens are chosen and when a request ends.

    Where ``temperature``, ``top_k`` and ``top_p`` are not given, the model's ``generation_config.json`` decides, and
    only where that says nothing the defaults here; see the setting ``engine.sampling_defaults``.

    Attributes:
        max_new_tokens: most tokens to generate; 0 computes the prompt alone.
        temperature: 0 takes the most likely token, always.
        top_k: sample among the k most likely tokens; 0 among all.
        top_p: sample among the most likely tokens that hold this probability together.
        seed: the same seed, prompt and parameters give the same tokens, whatever else is running.
        stop: strings that end the request; they are not part of its text.
        stop_token_ids: tokens that end it; they are not part of its tokens.
        ignore_eos: go on after the model's own end token.
        logprobs: give each token's log probability, and this many of the likeliest tokens beside it.
        prompt_logprobs: the same of the prompt's tokens but the first, before which there is nothing. Of the engine
            ``reference``.
        logit_bias: what is added to the logits of tokens before one is chosen, by token id; log probabilities are
            those without it.
        extra: further parameters by the engine's own names, as plain data. The engine ``sglang`` knows ``min_p``,
            ``repetition_penalty``, ``json_schema`` and others; ``reference`` none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] = 128
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    stop_token_ids: tuple[TokenId, ...] = ()
    ignore_eos: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    logit_bias: dict[TokenId, Bias] = Field(default_factory=dict)
    extra: dict[str, Any] = Field(default_factory=dict)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @classmethod
    def of(cls, params: SamplingParams | None, changes: dict[str, Any]) -> SamplingParams:
        """``params`` with some fields changed. Raises :class:`RequestError` naming the first wrong one."""
        if params is not None and not isinstance(params, cls):
            raise RequestError(f"params is a {type(params).__name__}: give SamplingParams, or single ones by name")
        if not changes:
            return params or cls()
        try:
            return cls.model_validate({**(params.model_dump(exclude_unset=True) if params else {}), **changes})
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                close = difflib.get_close_matches(key, cls.model_fields, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                text = f"unknown sampling parameter {key!r}; {hint}known: {', '.join(cls.model_fields)}"
                raise RequestError(text) from None
            message = problem["msg"].removeprefix("Value error, ")
            raise RequestError(f"{key} = {problem.get('input')!r}: {message[0].lower() + message[1:]}") from None

    def filled(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """With the ``defaults`` where nothing was said; those by names of the engine's own go into ``extra``."""
        said = self.model_fields_set
        missing = {name: value for name, value in defaults.items() if name in _FIELDS and name not in said}
        further = {name: value for name, value in defaults.items() if name not in _FIELDS and name not in self.extra}
        if further:
            missing["extra"] = {**further, **self.extra}
        return self.model_copy(update=missing) if missing else self

    def on_wire(self, ends: Sequence[int] = (), given: int = 0) -> Sampling:
        """What the ranks need of it.

        Args:
            ends: tokens that end an answer by the tokenizer's account; ranks know only the model's.
            given: tokens of the answer that are there already, and go to the ranks behind the prompt.
        """
        return Sampling(
            max_new_tokens=self.max_new_tokens - given,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            stop_token_ids=[*self.stop_token_ids, *(() if self.ignore_eos else ends)],
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            drawn=given,
            prompt_logprobs=self.prompt_logprobs,
            logit_bias=list(self.logit_bias.items()),
        )


_FIELDS = frozenset(SamplingParams.model_fields)
