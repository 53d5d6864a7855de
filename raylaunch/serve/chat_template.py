"""From a conversation to the text that the model continues."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylaunch.errors import ConfigError
from raylaunch.serve.errors import ApiError, shown, wrong

if TYPE_CHECKING:
    from raylaunch.config import ServeConfig
    from raylaunch.serve.openai_schema import ChatRequest


@dataclass(frozen=True)
class ChatTemplate:
    """The configured template, or None for the tokenizer's own."""

    text: str | None

    @classmethod
    def of(cls, settings: ServeConfig) -> ChatTemplate:
        """Reads the template if it is a file. Raises :class:`ConfigError`."""
        given = settings.chat_template
        if given is None or any(mark in given for mark in ("{{", "{%", "\n")):
            return cls(given)
        try:
            return cls(Path(given).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("serve.chat_template", given, f"is no Jinja template, and no file: {error}") from None

    def render(self, tokenizer: Any, messages: list[dict[str, str]], request: ChatRequest) -> str:
        """The prompt. Raises ApiError (400): the model has no template, or the template refuses the messages."""
        import jinja2

        if tokenizer is None:
            raise wrong("this model has no tokenizer: it can be asked by token ids only, at /generate", "messages")
        if self.text is None and not getattr(tokenizer, "chat_template", None):
            message = "this model has no chat template: use /v1/completions, or set serve.chat_template"
            raise ApiError(400, message, param="messages", code="no_chat_template")
        more = self._variables(tokenizer, request)
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=self.text, tokenize=False, add_generation_prompt=True, **more
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise wrong(f"the chat template refuses these messages: {error}", "messages") from None
        return str(text)

    @staticmethod
    def _variables(tokenizer: Any, request: ChatRequest) -> dict[str, Any]:
        """Variables for the template; what would change how it is applied is refused."""
        more = dict(request.chat_template_kwargs or {})
        taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) | {"messages", "self"}
        for name in more:
            if name in taken or not name.isidentifier():
                raise wrong(f"{shown(name)} cannot be set by a request", "chat_template_kwargs")
        return more
