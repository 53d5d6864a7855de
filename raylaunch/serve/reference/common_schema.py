"""Request fields that SGLang's and OpenAI's interfaces share, and those that neither can honour here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from raylaunch.frontends.sampling import SamplingParams
from raylaunch.serve.reference.fields import Fields, Reasons, Unsupported

MAX_STOPS = 64
MAX_BIASES = 1024
Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, lt=1 << 31, description="-1 or 0: among all tokens")]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
Stops = StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)]


def _few(value: Any) -> Any:
    """Pydantic looks at the length of a mapping behind all that is in it, and tells each error."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"has {len(value)} tokens; at most {MAX_BIASES}")
    return value


Biases = Annotated[
    dict[str, Annotated[float, Field(ge=-1e30, le=1e30)]], BeforeValidator(_few), Field(max_length=MAX_BIASES)
]
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

WITHOUT_EFFECT: Reasons = {
    "session_id": "this engine keeps nothing from one request to the next",
    "extra_key": "it tells cached prompts apart, and this engine caches none",
}


class SamplingFields(Fields):
    """What both interfaces say of how an answer is made, by the same names."""

    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: TopK | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    stop: Stops | None = None
    stop_token_ids: Integers | None = None
    ignore_eos: bool | None = False
    logit_bias: Biases | None = None
    seed: Seed | None = None

    def _params(
        self, new_tokens: int, seed: int | None, logprobs: int | None, choice: int, defaults: Mapping[str, Any]
    ) -> SamplingParams:
        """As the engine takes them; where the request says nothing, as the model's ``defaults`` say or the interfaces
        do. ``choice`` is the number among ``n``: each draws by itself."""
        top_k = None if self.top_k is None else max(self.top_k, 0)
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": top_k}
        said = {name: value for name, value in given.items() if value is not None}
        chosen: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, **defaults, **said}
        return SamplingParams(
            max_new_tokens=new_tokens,
            **chosen,
            seed=None if seed is None else (seed + choice) % (1 << 63),
            stop=() if self.stop is None else self.stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
        )
