"""What reaches a chat template, as templates expect it, and what a template would leave out of the prompt."""

from __future__ import annotations

import json

import pytest

from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError
from raylaunch.model.tokenizer import load_tokenizer
from raylaunch.serve.errors import ApiError
from raylaunch.serve.reference.chat_template import ChatTemplate
from raylaunch.serve.reference.openai_schema import ChatRequest
from tests.serve.test_fields import byte_tokenizer

AS_JSON = "{{ {'messages': messages, 'tools': tools} | tojson }}"
BARE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<!>{% endif %}"
ONLY_KNOWN = """{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}{{ m.content }}{% endif %}
{%- endfor %}"""
PARTS = """{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}
{%- for part in m.content %}({{ part.text }}){% endfor %}{% endif %}{% endfor %}"""
USER = {"role": "user", "content": "hi"}
TEXTS = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d"}}]


def render(template, *messages, **fields):
    request = ChatRequest.model_validate({"messages": list(messages), **fields})
    return ChatTemplate(template).render(byte_tokenizer(), request)


def call(arguments, **more):
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}, **more}]}


def test_a_conversation_with_a_tool():
    result = {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "rain"}]}
    shown = json.loads(render(AS_JSON, USER, call('{"city": "Paris"}', id="c", type="function"), result, tools=TOOLS))
    function = {"name": "f", "arguments": {"city": "Paris"}}
    assert shown == {
        "messages": [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": function}]},
            {"role": "tool", "content": "rain", "tool_call_id": "c"},
        ],
        "tools": TOOLS,
    }
    assert json.loads(render(AS_JSON, USER, tools=TOOLS, tool_choice="none"))["tools"] is None


@pytest.mark.parametrize("given", ["", None, {}, "{}"])
def test_a_call_without_arguments(given):
    message = json.loads(render(AS_JSON, USER, call(given)))["messages"][1]
    assert message["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("[1]", "must be a JSON object"),
        ("{'city': 1}", "the text is not JSON"),
        ('{"a": NaN}', "NaN"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"a": 1, "a": 2}', "more than once"),
    ],
)
def test_arguments_that_are_no_object(given, text):
    with pytest.raises(ApiError) as caught:
        render(AS_JSON, USER, call(given))
    assert caught.value.param == "messages.1.tool_calls.0.function.arguments"
    assert text in caught.value.detail


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[0].content }}", "a b"),  # which would print the list
        ("{{ messages[0].content | tojson }}", '"a b"'),
        ("{{ messages[0].content + '!' }}", "a b!"),
        (PARTS, "(a)(b)"),
    ],
)
def test_text_in_parts(template, text):
    assert render(template, TEXTS) == text


@pytest.mark.parametrize(("template", "role"), [(BARE, "system"), ("{# developer #}" + BARE, "developer")])
def test_a_developer_is_the_system_where_the_template_knows_none(template, role):
    assert render(template, {"role": "developer", "content": "be terse"}, USER).startswith(f"<{role}>be terse")


def test_an_answer_that_has_begun():
    begun = {"role": "assistant", "content": "12+"}
    template = BARE.replace("{% endfor %}", "<end>{% endfor %}", 1)
    assert render(template, USER, begun, continue_final_message=True) == "<user>hi<end><assistant>12+"
    assert render(template, USER, begun, add_generation_prompt=False) == "<user>hi<end><assistant>12+<end>"
    assert render(template, USER, begun) == "<user>hi<end><assistant>12+<end><!>"


@pytest.mark.parametrize(
    ("effort", "text"), [("none", "none False"), ("high", "high True"), (0.5, "0.5 True"), (None, " ")]
)
def test_reasoning_effort(effort, text):
    template = "{{ reasoning_effort }} {{ enable_thinking }}"
    assert render(template, USER, reasoning_effort=effort) == text
    more = {"enable_thinking": "as asked"}
    assert render(template, USER, reasoning_effort=effort, chat_template_kwargs=more).endswith(" as asked")


@pytest.mark.parametrize(
    ("template", "messages", "fields", "param"),
    [
        (BARE, [USER], {"tools": TOOLS}, "tools"),
        (BARE, [USER, call("{}")], {}, "messages.1.tool_calls"),
        (BARE, [{"role": "assistant", "content": "a", "reasoning_content": "b"}], {}, "messages.0.reasoning_content"),
        (ONLY_KNOWN, [USER, {"role": "tool", "content": "rain"}], {}, "messages.1"),
        (ONLY_KNOWN, [USER, {"role": "function", "name": "f", "content": "rain"}], {}, "messages.1"),
        ("{# no developer here #}" + ONLY_KNOWN, [{"role": "developer", "content": "a"}, USER], {}, "messages.0"),
        (BARE, [USER], {"reasoning_effort": "low"}, "reasoning_effort"),
        (BARE, [USER], {"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking"),
    ],
)
def test_what_a_template_leaves_out(template, messages, fields, param):
    with pytest.raises(ApiError) as caught:
        render(template, *messages, **fields)
    assert (caught.value.status_code, caught.value.param) == (400, param)
    assert f"does not show {param}" in caught.value.detail


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([USER], {"continue_final_message": True}, "continue_final_message"),
        ([{"role": "assistant"}], {"continue_final_message": True}, "continue_final_message"),
        (
            [{"role": "assistant", "content": "a"}],
            {"continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt",
        ),
        ([USER], {"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
        (
            [USER],
            {"chat_template_kwargs": {"add_generation_prompt": False}},
            "chat_template_kwargs.add_generation_prompt",
        ),
        ([USER], {"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs.a b"),
        ([{**USER, **call("{}"), "role": "user"}], {}, "messages.0.tool_calls"),
        ([{**USER, "tool_call_id": "c"}], {}, "messages.0.tool_call_id"),
    ],
)
def test_what_does_not_fit_together(messages, fields, param):
    with pytest.raises(ApiError) as caught:
        render(AS_JSON, *messages, **fields)
    assert (caught.value.status_code, caught.value.param) == (400, param)


@pytest.mark.parametrize("file", ["/nowhere/at/all", "~nobody-of-this-name/a.jinja"])
def test_a_file_that_is_none(file):
    from raylaunch.config import ServeConfig

    with pytest.raises(ConfigError, match=r"serve\.chat_template"):
        ChatTemplate.from_settings(ServeConfig(chat_template=file))


def adder(*messages, **fields):
    request = ChatRequest.model_validate({"messages": list(messages), **fields})
    return ChatTemplate(None).render(load_tokenizer(LaunchConfig.default()), request)


def turn(content, role="user"):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "fields", "prompt"),
    [
        ([turn("12+30=")], {}, "12+30="),
        ([turn("12+30")], {}, "12+30="),
        ([turn("What is 12 + 30?")], {}, "12+30="),
        ([turn("I have 3 apples. How much is 7+8, in words?")], {}, "7+8="),
        ([turn("You add.", "system"), turn("1+2"), turn("3", "assistant"), turn("4+5")], {}, "4+5="),
        ([turn([{"type": "text", "text": "1+2"}])], {}, "1+2="),
        ([turn("12+30"), turn("4", "assistant")], {"continue_final_message": True, "add_generation_prompt": False},
         "12+30=4"),
    ],
)  # fmt: skip
def test_the_adder_takes_the_sum_in_the_last_message(messages, fields, prompt):
    assert adder(*messages, **fields) == prompt


@pytest.mark.parametrize("said", ["hello", "12-30", "1+2+3", "100+1", "+", "1 + two", ""])
def test_the_adder_says_what_it_does_where_it_is_asked_for_something_else(said):
    with pytest.raises(ApiError, match="adds two whole numbers from 0 to 99"):
        adder(turn(said))


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ 'a' * (10 ** 30) }}", "{{ messages[0].content.nothing.at.all }}"]
)
def test_a_template_that_fails_refuses(template):
    with pytest.raises(ApiError, match=r"the chat template refuses these messages: .") as caught:
        render(template, USER)
    assert caught.value.status_code == 400


def test_a_tokenizer_with_named_templates_and_no_default():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"other": BARE}
    with pytest.raises(ApiError, match="the chat template refuses these messages"):
        ChatTemplate(None).render(tokenizer, ChatRequest.model_validate({"messages": [USER]}))


def test_a_name_that_the_template_does_not_show():
    with pytest.raises(ApiError, match=r"does not show messages\.1\.name"):
        render(BARE, USER, USER | {"name": "ann"})
    assert "ann" in render(AS_JSON, USER | {"name": "ann"})
    result = {"role": "tool", "name": "f", "tool_call_id": "c", "content": "rain"}
    assert "rain" in render(BARE, USER, result), "whose call names it"
