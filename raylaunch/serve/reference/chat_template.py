"""From a conversation to the text that the model continues. What a template would leave out is refused by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raylaunch.model.tokenizer import chat_template_of
from raylaunch.serve.errors import ApiError, shown, wrong
from raylaunch.serve.reference.messages import plain

if TYPE_CHECKING:
    from raylaunch.config import ServeConfig
    from raylaunch.serve.reference.openai_schema import ChatRequest

Conversation = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None
Render = Callable[[Conversation, Tools], str]

SHOWN_BY_ALL = ("system", "user", "assistant")
"""Roles that every template has; messages of others vanish from the prompts of some."""
PROBE = "zqxj"  # in no template, and no part of what Python or JSON writes around a text


@dataclass(frozen=True)
class ChatTemplate:
    """The configured template, or None for the tokenizer's own."""

    text: str | None

    @classmethod
    def from_settings(cls, settings: ServeConfig) -> ChatTemplate:
        """Reads the template if it is a file. Raises :class:`ConfigError`."""
        return cls(chat_template_of(settings))

    def render(self, tokenizer: Any, request: ChatRequest) -> str:
        """The prompt.

        Raises:
            ApiError: 400: the model has no template, or the template refuses the conversation or does not show all of
                it, which is named then.
        """
        if tokenizer is None:
            raise wrong("this model has no tokenizer: it can be asked by token ids only, at /generate", "messages")
        if self.text is None and not getattr(tokenizer, "chat_template", None):
            message = "this model has no chat template: use /v1/completions, or set serve.chat_template"
            raise ApiError(400, message, param="messages", code="no_chat_template")
        tools = [tool.plain() for tool in request.tools or ()] if request.tool_choice != "none" else []
        source = self.text or _rendered(lambda: str(tokenizer.get_chat_template(None, tools or None)))
        ending = _ending(request)
        variables = _variables(tokenizer, source, request)

        def render(messages: Conversation, tools: Tools) -> str:
            return str(
                tokenizer.apply_chat_template(
                    messages, tools=tools, chat_template=source, tokenize=False, **ending, **variables
                )
            )

        in_parts = any(message.in_parts for message in request.messages) and _takes_parts(render)
        developer = _mentions(source, "developer")
        messages = plain(request.messages, in_parts=in_parts, developer=developer)
        text = _rendered(lambda: render(messages, tools or None))
        _require_mentioned(source, messages)
        for field, changed, fewer_tools in _changes(messages, tools):
            if _hidden(render, text, changed, fewer_tools):
                raise _not_shown(field)
        return text


def _rendered(render: Callable[[], str]) -> str:
    try:
        return render()
    except Exception as error:  # of the template, which is a program
        said = str(error) or type(error).__name__
        raise wrong(f"the chat template refuses these messages: {said}", "messages") from None


def _ending(request: ChatRequest) -> dict[str, bool]:
    """How the prompt ends: at the beginning of an answer, or within the last message."""
    goes_on = bool(request.continue_final_message)
    opens = not goes_on if request.add_generation_prompt is None else request.add_generation_prompt
    if goes_on and opens:
        raise wrong("continue_final_message needs add_generation_prompt to be false", "add_generation_prompt")
    last = request.messages[-1]
    if goes_on and (last.role != "assistant" or not last.content):
        raise wrong(
            "continue_final_message needs a last message of the assistant's, with text", "continue_final_message"
        )
    return {"continue_final_message": goes_on, "add_generation_prompt": opens}


def _variables(tokenizer: Any, source: str, request: ChatRequest) -> dict[str, Any]:
    """Variables for the template; those that it does not read, or that would change how it is applied, are refused."""
    more = dict(request.chat_template_kwargs or {})
    taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) | {"messages", "self"}
    for name in more:
        field = f"chat_template_kwargs.{shown(name)[1:-1]}"
        if name in taken or not name.isidentifier():
            raise wrong(f"{field} cannot be set by a request", field)
        if not _mentions(source, name):
            raise _not_shown(field)
    effort = request.reasoning_effort
    if effort is None:
        return more
    # As SGLang: families of models have different names for it.
    given = {"reasoning_effort": effort, "enable_thinking": effort != "none", "thinking": effort != "none"}
    known = {name: value for name, value in given.items() if _mentions(source, name)}
    if not known:
        raise _not_shown("reasoning_effort")
    return known | more


def _mentions(source: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", source) is not None


def _require_mentioned(source: str, messages: Conversation) -> None:
    """Templates leave out the reasoning of earlier turns on purpose; one that never shows any is another matter."""
    for place, message in enumerate(messages):
        if message.get("reasoning_content") and not _mentions(source, "reasoning_content"):
            raise _not_shown(f"messages.{place}.reasoning_content")


def _changes(messages: Conversation, tools: list[dict[str, Any]]) -> Iterator[tuple[str, Conversation, Tools]]:
    """What many templates leave out: a field, and the conversation without it. Of several the first, for all."""
    if tools:
        yield "tools", messages, None
    calls = next((place for place, message in enumerate(messages) if "tool_calls" in message), None)
    if calls is not None:
        other = [{"type": "function", "function": {"name": PROBE, "arguments": {}}, "id": "0" * 9}]
        yield f"messages.{calls}.tool_calls", _changed(messages, calls, tool_calls=other), tools or None
    named = (place for place, one in enumerate(messages) if one.get("name") and one["role"] in SHOWN_BY_ALL)
    if (first := next(named, None)) is not None:
        yield f"messages.{first}.name", _changed(messages, first, name=PROBE), tools or None
    for role in dict.fromkeys(message["role"] for message in messages):
        if role not in SHOWN_BY_ALL:
            place = next(place for place, message in enumerate(messages) if message["role"] == role)
            yield f"messages.{place}", _changed(messages, place, content=PROBE), tools or None


def _changed(messages: Conversation, place: int, **fields: Any) -> Conversation:
    return [*messages[:place], messages[place] | fields, *messages[place + 1 :]]


def _hidden(render: Render, text: str, messages: Conversation, tools: Tools) -> bool:
    """Whether the prompt stays the same although the conversation does not."""
    try:
        return render(messages, tools) == text
    except Exception:  # of the template, which looks at what was changed
        return False


def _takes_parts(render: Render) -> bool:
    """Whether the template takes a content that is a list, and does not print the list itself."""
    message = {"role": "user", "content": [{"type": "text", "text": PROBE}]}
    try:
        text = render([message], None)
    except Exception:  # of the template, which takes the list for a text
        return False
    before, found, _ = text.partition(PROBE)
    return bool(found) and re.search(r"""['"]text['"]: ?['"]$""", before) is None


def _not_shown(field: str) -> ApiError:
    return wrong(f"the model's chat template does not show {field}; leave it out", field, "unsupported")
