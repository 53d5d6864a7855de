"""What OpenAI's endpoints take, with SGLang's additions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raylaunch.frontends.sampling import SamplingParams
from raylaunch.serve.reference.common_schema import (
    UNSUPPORTED,
    UNSUPPORTED_SAMPLING,
    WITHOUT_EFFECT,
    SamplingFields,
)
from raylaunch.serve.reference.fields import Fields, Reasons, Unsupported
from raylaunch.serve.reference.generate_schema import RequestId
from raylaunch.serve.reference.messages import Message, Tool
from raylaunch.serve.reference.prompts import Ids, Prompt, Text

DEFAULT_MODEL = "default"  # SGLang's clients may leave the model out
COMPLETION_TOKENS = 16
CHAT_TOKENS = 1024
Effort = (
    Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
    | Annotated[float, Field(ge=0, le=0.99, allow_inf_nan=False)]
)
MaxTokens = Annotated[int, Field(ge=1, lt=1 << 31)]


class StreamOptions(Fields):
    """``include_usage``: the last event before ``[DONE]`` says how many tokens were used; ``continuous_usage_stats``,
    which is SGLang's: every event does."""

    unsupported: ClassVar[Unsupported] = {"include_obfuscation": (False,)}

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Common(SamplingFields):
    """What both endpoints take. ``top_k``, ``stop_token_ids``, ``ignore_eos`` and ``rid`` are SGLang's additions."""

    unsupported: ClassVar[Unsupported] = {
        **UNSUPPORTED,
        **UNSUPPORTED_SAMPLING,
        "min_tokens": (0,),
        "response_format": ({"type": "text"},),
        "return_cached_tokens_details": (False,),
        "return_token_ids": (False,),
        "data_parallel_rank": (0,),
    }
    without_effect: ClassVar[Reasons] = {
        **WITHOUT_EFFECT,
        "user": "it says who asks, and everyone is answered alike",
        "cache_salt": "it tells cached prompts apart, and this engine caches none",
    }
    instead: ClassVar[Reasons] = {"max_new_tokens": "max_tokens"}

    model: Annotated[str, Field(max_length=1024)] | None = DEFAULT_MODEL
    max_tokens: MaxTokens | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    rid: RequestId | None = None

    def params(self, new_tokens: int, logprobs: int | None, choice: int, defaults: Mapping[str, Any]) -> SamplingParams:
        """As the engine takes them. ``choice`` is the number among ``n``: each draws by itself."""
        return self._params(new_tokens, self.seed, logprobs, choice, defaults)


class CompletionRequest(Common):
    """A request to ``/v1/completions``. ``echo`` puts the prompt before the answer, also with ``max_tokens`` of 0, and
    its log probabilities before the answer's. ``best_of`` must be ``n``: all choices are given."""

    unsupported: ClassVar[Unsupported] = {
        **Common.unsupported,
        "suffix": ("",),
        "json_schema": ("",),
    }

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = COMPLETION_TOKENS
    echo: bool | None = False
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TokenizeRequest(Fields):
    """A request to ``/tokenize``: one text, or several."""

    unsupported: ClassVar[Unsupported] = {
        "messages": ([],),
        "tools": ([],),
        "tool_choice": ("auto", "none"),
        "reasoning_effort": (),
        "continue_final_message": (False,),
        "chat_template_kwargs": ({},),
    }

    prompt: Text
    model: Annotated[str, Field(max_length=1024)] | None = DEFAULT_MODEL
    add_special_tokens: bool | None = True


class DetokenizeRequest(Fields):
    """A request to ``/detokenize``: the tokens of one text, or of several."""

    tokens: Ids
    model: Annotated[str, Field(max_length=1024)] | None = DEFAULT_MODEL
    skip_special_tokens: bool | None = True


class ChatRequest(Common):
    """A request to ``/v1/chat/completions``. Without a limit an answer has at most 1024 tokens.

    Calls that a model makes of ``tools`` stay in its text; with ``tool_choice: none`` it is not shown any.
    """

    unsupported: ClassVar[Unsupported] = {
        **Common.unsupported,
        "functions": ([],),
        "function_call": ("none", "auto"),
        "parallel_tool_calls": (True,),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "moderation": (),
        "web_search_options": (),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "verbosity": ("medium",),
        "reasoning": (),
        "task": (),
        "input_ids": (),
        "chat_template": (),
        "documents": ([],),
        "max_dynamic_patch": (),
        "min_dynamic_patch": (),
        "use_audio_in_video": (False,),
        "return_prompt_token_ids": (False,),
        "return_meta_info": (False,),
    }
    without_effect: ClassVar[Reasons] = {
        **Common.without_effect,
        "metadata": "it is kept with stored answers, and none are stored",
        "safety_identifier": "it says who asks, and everyone is answered alike",
        "prompt_cache_key": "it finds cached prompts, and this engine caches none",
        "prompt_cache_options": "this engine caches no prompts",
        "prompt_cache_retention": "this engine caches no prompts",
        "separate_reasoning": "no reasoning is told from the text, as SGLang has it without a parser",
        "stream_reasoning": "no reasoning is told from the text, as SGLang has it without a parser",
    }
    instead: ClassVar[Reasons] = {
        **Common.instead,
        "functions": "tools",
        "function_call": "tool_choice",
        "reasoning": "reasoning_effort",
    }

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=1024, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = False
    add_generation_prompt: bool | None = None
