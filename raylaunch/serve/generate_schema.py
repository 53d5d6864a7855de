"""What ``/generate`` and its companions take, as SGLang's do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raylaunch.sampling import SamplingParams
from raylaunch.serve.common_schema import Integers, Probability, Seed, Stops, Temperature, TopK, chosen
from raylaunch.serve.prompts import Ids, Text

DEFAULT_NEW_TOKENS = 128
RequestId = Annotated[str, Field(min_length=1, max_length=256)]


class Sampling(BaseModel):
    """SGLang's ``sampling_params``; what is left out or null has the model's default, or SGLang's."""

    model_config = ConfigDict(strict=True, extra="allow")

    max_new_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = DEFAULT_NEW_TOKENS
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: TopK | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    stop: Stops | None = None
    stop_token_ids: Integers | None = None
    ignore_eos: bool | None = False
    sampling_seed: Seed | None = None
    seed: Seed | None = None

    def params(self, logprobs: int | None, choice: int, defaults: Mapping[str, Any]) -> SamplingParams:
        """As the engine takes them. ``choice`` is the number among ``n``: each draws by itself."""
        seed = self.sampling_seed if self.sampling_seed is not None else self.seed
        return SamplingParams(
            max_new_tokens=DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens,
            **chosen(defaults, self.temperature, self.top_p, self.top_k),
            seed=None if seed is None else (seed + choice) % (1 << 63),
            stop=() if self.stop is None else self.stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
        )


class GenerateRequest(BaseModel):
    """A request to ``/generate``: either ``text`` or ``input_ids``, one or a list of them."""

    model_config = ConfigDict(strict=True, extra="allow")

    text: Text | None = None
    input_ids: Ids | None = None
    sampling_params: Sampling | Annotated[list[Sampling], Field(min_length=1, max_length=4096)] | None = None
    stream: bool | None = False
    rid: RequestId | Annotated[list[RequestId], Field(max_length=4096)] | None = None
    return_logprob: bool | None = False
    top_logprobs_num: Annotated[int, Field(ge=0, le=20)] | None = 0
    return_text_in_logprobs: bool | None = False

    @model_validator(mode="after")
    def _either(self) -> GenerateRequest:
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("give either text or input_ids")
        return self


class AbortRequest(BaseModel):
    """A request to end requests: the one that ``rid`` names, or all."""

    model_config = ConfigDict(strict=True)

    rid: str | None = ""
    abort_all: bool | None = False


UNSUPPORTED_SAMPLING: dict[str, tuple[Any, ...]] = {
    "min_p": (0, 0.0),
    "min_new_tokens": (0,),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "stop_regex": ("", []),
    "json_schema": ("",),
    "regex": ("",),
    "ebnf": ("",),
    "structural_tag": ("",),
    "logit_bias": ({},),
    "skip_special_tokens": (True,),
    "no_stop_trim": (False,),
}
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "input_embeds": (),
    "image_data": ([],),
    "video_data": ([],),
    "audio_data": ([],),
    "lora_path": ([],),
    "custom_logit_processor": (),
    "session_params": (),
    "return_hidden_states": (False,),
    "return_routed_experts": (False,),
    "return_sampling_mask": (False,),
    "return_entropy": (False,),
    "token_ids_logprob": ([],),
    "logprob_start_len": (-1,),
}
