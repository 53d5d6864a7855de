"""Types of request fields that SGLang's and OpenAI's interfaces share, and fields that neither can honour here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import Field

from raylaunch.frontends.sampling import SamplingParams
from raylaunch.serve.reference.fields import Reasons, Unsupported

MAX_STOPS = 64
Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, lt=1 << 31, description="-1 or 0: among all tokens")]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
Stops = StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)]
Biases = Annotated[dict[str, Annotated[float, Field(ge=-1e30, le=1e30)]], Field(max_length=1024)]
Integers = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=1024)]

UNSUPPORTED_SAMPLING: Unsupported = {
    "min_p": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "regex": ("",),
    "ebnf": ("",),
    "structural_tag": ("",),
    "stop_regex": ("", []),
    "no_stop_trim": (False,),
    "skip_special_tokens": (True,),
    "custom_params": ({},),
}
"""How tokens are chosen and made text, by the names that both interfaces have, and the values that change nothing."""

UNSUPPORTED: Unsupported = {
    "lora_path": ("", []),
    "custom_logit_processor": ("",),
    "session_params": ({},),
    "priority": (0,),
    "custom_labels": ({},),
    "images_config": ({},),
    "return_hidden_states": (False,),
    "return_routed_experts": (False,),
    "routed_experts_start_len": (0,),
    "bootstrap_host": (),
    "bootstrap_port": (),
    "bootstrap_room": (),
    "routed_dp_rank": (0,),
    "disagg_prefill_dp_rank": (),
}
"""What SGLang's requests have beside sampling, under every endpoint."""


class SamplingFields(Protocol):
    """What both interfaces say of how an answer is made, by the same names."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    stop: str | list[str] | None
    stop_token_ids: list[int] | None
    ignore_eos: bool | None
    logit_bias: dict[str, float] | None


def sampling_params(
    asked: SamplingFields,
    new_tokens: int,
    seed: int | None,
    logprobs: int | None,
    choice: int,
    defaults: Mapping[str, Any],
) -> SamplingParams:
    """A request as the engine takes it; where it says nothing, as the model's ``defaults`` say or the interfaces do.

    Args:
        choice: its number among ``n``; each draws by itself.
    """
    top_k = None if asked.top_k is None else max(asked.top_k, 0)
    given = {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": top_k}
    said = {name: value for name, value in given.items() if value is not None}
    chosen: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, **defaults, **said}
    return SamplingParams(
        max_new_tokens=new_tokens,
        **chosen,
        seed=None if seed is None else (seed + choice) % (1 << 63),
        stop=() if asked.stop is None else asked.stop,
        stop_token_ids=tuple(asked.stop_token_ids or ()),
        ignore_eos=bool(asked.ignore_eos),
        logprobs=logprobs,
        logit_bias={int(token): bias for token, bias in (asked.logit_bias or {}).items()},
    )


WITHOUT_EFFECT: Reasons = {
    "session_id": "this engine keeps nothing from one request to the next",
    "extra_key": "it tells cached prompts apart, and this engine caches none",
}
