"""A conversation as it comes in a request, and as chat templates take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raylaunch.serve.errors import ApiError, wrong
from raylaunch.serve.reference.body import parse
from raylaunch.serve.reference.fields import Fields, Reasons, Unsupported

ONLY_OF = {"tool_calls": "assistant", "reasoning_content": "assistant", "tool_call_id": "tool"}
"""Fields that only one role's messages have."""
Name = Annotated[str, Field(min_length=1, max_length=256)]


class TextPart(Fields):
    """A piece of a message's content. Images, sound and files are refused by their ``type``."""

    without_effect: ClassVar[Reasons] = {"prompt_cache_breakpoint": "this engine caches no prompts"}

    type: Literal["text"]
    text: str


class CalledFunction(Fields):
    """The function that an assistant called. ``arguments``: an object, or one written as JSON."""

    name: Name
    arguments: str | dict[str, Any] | None = None


class ToolCall(Fields):
    """A call that an assistant made."""

    without_effect: ClassVar[Reasons] = {"index": "it is a call's place in a stream, and the list has its order"}

    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] | None = "function"
    function: CalledFunction


class Function(Fields):
    """A function that may be called. ``parameters`` is a JSON schema, which the template shows as it is."""

    unsupported: ClassVar[Unsupported] = {"strict": (False,), "defer_loading": (False,)}

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Fields):
    """What an assistant may call."""

    unsupported: ClassVar[Unsupported] = {"defer_loading": (False,)}

    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """As chat templates take it: as it came."""
        shown = self.function.model_dump(include=set(Function.model_fields), exclude_none=True)
        return {"type": self.type, "function": shown}


class Message(Fields):
    """One turn of a conversation."""

    unsupported: ClassVar[Unsupported] = {
        "refusal": (),
        "audio": (),
        "function_call": (),
        "annotations": ([],),
        "tools": ([],),
        "type": ("text", "message"),
    }
    instead: ClassVar[Reasons] = {"function_call": "tool_calls", "tools": "tools of the request"}

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(max_length=1024, fail_fast=True)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=1024, fail_fast=True)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    reasoning_content: str | None = None

    @property
    def in_parts(self) -> bool:
        """Whether the content is a list, of a role whose templates may take one."""
        return isinstance(self.content, list) and self.role != "tool"


def plain(messages: Sequence[Message], *, in_parts: bool, developer: bool) -> list[dict[str, Any]]:
    """A conversation as chat templates take it: arguments of calls as mappings, an empty text for no content.

    Args:
        in_parts: the template takes a content that is a list; texts are joined by a space if not, as SGLang has it.
        developer: the template knows the role ``developer``; to all others its messages are the system's.
    Raises:
        ApiError: 400: a role has what is another's, or arguments are no JSON object.
    """
    return [_plain(message, f"messages.{place}", in_parts, developer) for place, message in enumerate(messages)]


def _plain(message: Message, where: str, in_parts: bool, developer: bool) -> dict[str, Any]:
    for name, role in ONLY_OF.items():
        if getattr(message, name) and message.role != role:
            raise wrong(
                f"{where}.{name} is of the role {role!r}, and this is one of {message.role!r}", f"{where}.{name}"
            )
    content: Any = message.content or ""
    if isinstance(content, list):
        content = [part.model_dump(include={"type", "text"}) for part in content]
        if not (in_parts and message.in_parts):
            content = " ".join(part["text"] for part in content)
    role = "system" if message.role == "developer" and not developer else message.role
    found: dict[str, Any] = {"role": role, "content": content}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, name) is not None:
            found[name] = getattr(message, name)
    if message.tool_calls:
        found["tool_calls"] = [
            _plain_call(call, f"{where}.tool_calls.{place}") for place, call in enumerate(message.tool_calls)
        ]
    return found


def _plain_call(call: ToolCall, where: str) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": _arguments(call.function.arguments, where)}
    identified = {"id": call.id} if call.id is not None else {}
    return identified | {"type": "function", "function": function}


def _arguments(given: str | dict[str, Any] | None, where: str) -> dict[str, Any]:
    """The arguments of a call as an object; there are none in an empty text."""
    if not given:
        return {}
    param = f"{where}.function.arguments"
    try:
        value = parse(given.encode()) if isinstance(given, str) else given
    except ApiError as error:
        raise wrong(f"{param}: {str(error.detail).replace('the body', 'the text')}", param) from None
    if not isinstance(value, dict):
        raise wrong(f'{param} must be a JSON object, such as \'{{"city": "Paris"}}\'', param)
    return value
