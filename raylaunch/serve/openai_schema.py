"""What OpenAI's endpoints take. Fields that are not named here are ignored, or refused by name (``UNSUPPORTED``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raylaunch.sampling import SamplingParams
from raylaunch.serve.common_schema import Integers, Probability, Seed, Stops, Temperature, TopK, chosen
from raylaunch.serve.generate_schema import RequestId
from raylaunch.serve.prompts import Prompt

DEFAULT_MODEL = "default"  # SGLang's clients may leave the model out
COMPLETION_TOKENS = 16
CHAT_TOKENS = 1024
MaxTokens = Annotated[int, Field(ge=1, lt=1 << 31)]


class StreamOptions(BaseModel):
    """``include_usage``: the last event before ``[DONE]`` says how many tokens were used."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = False


class Common(BaseModel):
    """What both endpoints take. ``top_k``, ``stop_token_ids``, ``ignore_eos`` and ``rid`` are SGLang's additions."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: Annotated[str, Field(max_length=1024)] = DEFAULT_MODEL
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    stop: Stops | None = None
    seed: Seed | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    top_k: TopK | None = None
    stop_token_ids: Integers | None = None
    ignore_eos: bool | None = False
    rid: RequestId | None = None

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def params(self, new_tokens: int, logprobs: int | None, choice: int, defaults: Mapping[str, Any]) -> SamplingParams:
        """As the engine takes them. ``choice`` is the number among ``n``: each draws by itself."""
        return SamplingParams(
            max_new_tokens=new_tokens,
            **chosen(defaults, self.temperature, self.top_p, self.top_k),
            seed=None if self.seed is None else (self.seed + choice) % (1 << 63),
            stop=() if self.stop is None else self.stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
        )


class CompletionRequest(Common):
    """A request to ``/v1/completions``."""

    prompt: Prompt
    max_tokens: MaxTokens | None = COMPLETION_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TextPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn. What the chat template does not know of it is ignored."""

    model_config = ConfigDict(strict=True)

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | Annotated[list[TextPart], Field(max_length=1024)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text} | ({"name": self.name} if self.name is not None else {})


class ChatRequest(Common):
    """A request to ``/v1/chat/completions``. Without a limit an answer has at most 1024 tokens."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "min_p": (0, 0.0),
    "min_tokens": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "regex": ("",),
    "json_schema": ("",),
    "ebnf": ("",),
    "structural_tag": ("",),
    "lora_path": ("",),
    "stop_regex": ("", []),
    "no_stop_trim": (False,),
    "skip_special_tokens": (True,),
    "continue_final_message": (False,),
    "input_ids": (),
    "input_embeds": (),
    "image_data": ([],),
    "return_hidden_states": (False,),
}
