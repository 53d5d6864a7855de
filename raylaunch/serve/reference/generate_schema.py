"""What ``/generate`` and its companions take, as SGLang's do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from raylaunch.frontends.sampling import SamplingParams
from raylaunch.serve.reference.common_schema import (
    UNSUPPORTED,
    UNSUPPORTED_SAMPLING,
    WITHOUT_EFFECT,
    SamplingFields,
    Seed,
)
from raylaunch.serve.reference.fields import Fields, Reasons, Unsupported
from raylaunch.serve.reference.prompts import Ids, Text

DEFAULT_NEW_TOKENS = 128
RequestId = Annotated[str, Field(min_length=1, max_length=256)]


class SglangSampling(SamplingFields):
    """SGLang's ``sampling_params``; what is left out or null has the model's default, or SGLang's."""

    unsupported: ClassVar[Unsupported] = {
        **UNSUPPORTED_SAMPLING,
        "json_schema": ("",),
        "min_new_tokens": (0,),
        "spaces_between_special_tokens": (True,),
        "stream_interval": (1,),
    }

    max_new_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = DEFAULT_NEW_TOKENS
    sampling_seed: Seed | None = None

    def params(self, logprobs: int | None, choice: int, defaults: Mapping[str, Any]) -> SamplingParams:
        """As the engine takes them. ``choice`` is the number among ``n``: each draws by itself."""
        seed = self.sampling_seed if self.sampling_seed is not None else self.seed
        new_tokens = DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens
        return self._params(new_tokens, seed, logprobs, choice, defaults)


class GenerateRequest(Fields):
    """A request to ``/generate``: either ``text`` or ``input_ids``, one or a list of them."""

    unsupported: ClassVar[Unsupported] = {
        **UNSUPPORTED,
        "input_embeds": ([],),
        "image_data": ([],),
        "video_data": ([],),
        "audio_data": ([],),
        "modalities": ([],),
        "mm_hashes": ([],),
        "use_audio_in_video": (False,),
        "max_dynamic_patch": (),
        "min_dynamic_patch": (),
        "image_max_dynamic_patch": (),
        "video_max_dynamic_patch": (),
        "mm_data_mooncake": ([],),
        "need_wait_for_mm_inputs": (False,),
        "num_items_assigned": ({},),
        "encoder_urls": ([],),
        "logprob_start_len": (-1,),
        "token_ids_logprob": ([],),
        "return_sampling_mask": (False,),
        "return_entropy": (False,),
        "return_prompt_token_ids": (False,),
        "return_indexer_topk": (False,),
        "return_flat_raw_top_logprobs": (False,),
        "return_flat_raw_top_logprobs_b64": (False,),
        "return_bytes": (False,),
        "log_metrics": (True,),
        "lora_id": (),
        "positional_embed_overrides": (),
        "multi_item_delimiter_indices": ([],),
        "bootstrap_pair_key": (),
        "decode_tp_size": (),
        "require_reasoning": (False,),
        "max_thinking_tokens": (),
        "background": (False,),
        "http_worker_ipc": (),
        "external_trace_header": ({},),
        "received_time": (),
    }
    without_effect: ClassVar[Reasons] = {
        **WITHOUT_EFFECT,
        "no_logs": "no request's contents are ever logged",
        "routing_key": "there is one group of ranks to go to",
        "conversation_id": "this engine keeps nothing from one request to the next",
    }
    instead: ClassVar[Reasons] = {
        **{name: f"sampling_params.{name}" for name in SglangSampling.model_fields},
        "prompt": "text",
    }

    text: Text | None = None
    input_ids: Ids | None = None
    sampling_params: SglangSampling | Annotated[list[SglangSampling], Field(min_length=1, max_length=4096)] | None = (
        None
    )
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


class AbortRequest(Fields):
    """A request to end requests: the one that ``rid`` names, or all."""

    unsupported: ClassVar[Unsupported] = {"abort_message": ("",), "finished_reason": (), "http_worker_ipc": ()}

    rid: str | None = ""
    abort_all: bool | None = False
