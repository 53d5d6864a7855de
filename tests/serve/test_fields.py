"""No field of a request is accepted and dropped: each is used, cannot change the answer, or is refused by its name."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import re
import typing
from functools import cache

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raylaunch.config import ServeConfig
from raylaunch.serve import build_app
from raylaunch.serve.reference.fields import Fields
from raylaunch.serve.reference.generate_schema import AbortRequest, GenerateRequest, SglangSampling
from raylaunch.serve.reference.messages import CalledFunction, Function, Message, TextPart, Tool, ToolCall
from raylaunch.serve.reference.openai_schema import ChatRequest, CompletionRequest, StreamOptions
from tests.serve import field_table as table
from tests.serve.answering_engine import AnsweringEngine

ALL_SHOWN = """
{%- if tools %}T:{{ tools | tojson }}{% endif %}{% if terse %}terse{% endif %}{{ reasoning_effort }}
{%- for m in messages %}<{{ m.role }} {{ m.name }} {{ m.tool_call_id }}>
{%- if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}
{%- for c in m.tool_calls or [] %}[{{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %};
{%- endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
TURN = {"role": "user", "content": "12+30="}


class ByteEngine(AnsweringEngine):
    """Its tokens are bytes, so that no two prompts are the same to it."""

    @property
    def tokenizer(self):
        return byte_tokenizer()

    @property
    def shape(self):
        return dataclasses.replace(super().shape, vocab_size=256)


@cache
def byte_tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.fixture(scope="module")
def outcome_of():
    """Sends a request; its status, what the engine was asked and what was answered, without what is never the same."""
    engine = ByteEngine()
    app = build_app(engine, ServeConfig(chat_template=ALL_SHOWN))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    with asyncio.Runner() as loop:  # on this thread: a client on another waits longer for it than for the answers

        def send(path, body):
            engine.asked_for.clear()
            answer = loop.run(client.post(path, json=body))
            text = re.sub(r'[0-9a-f]{24,}|"created":\d+|"e2e_latency":[0-9.e-]+', "", answer.text)
            asked = [(ids, params.model_dump()) for ids, params in engine.asked_for]
            return answer.status_code, asked, text, answer

        yield send


def in_request(path, **body):
    """A field of the request itself."""
    return path, body, lambda request: request, ""


def in_message(role):
    message = {**TURN, "role": role}
    body = {"messages": [TURN, message, TURN]}
    return CHAT, body, lambda request: request["messages"][1], "messages.1."


CALLER = {"role": "assistant", "tool_calls": [table.CALL]}
PART = {"type": "text", "text": "12+30="}
PLACES = {
    "generate": (table.GENERATE, GenerateRequest, in_request(GENERATE, text="12+30=")),
    "sampling": (
        table.SAMPLING,
        SglangSampling,
        (
            GENERATE,
            {"text": "12+30=", "sampling_params": {}},
            lambda request: request["sampling_params"],
            "sampling_params.",
        ),
    ),
    "completion": (table.COMPLETION, CompletionRequest, in_request(COMPLETIONS, prompt="12+30=")),
    "chat": (table.CHAT, ChatRequest, in_request(CHAT, messages=[TURN])),
    "stream options": (
        table.STREAM_OPTIONS,
        StreamOptions,
        (
            CHAT,
            {"messages": [TURN], "stream": True, "stream_options": {}},
            lambda request: request["stream_options"],
            "stream_options.",
        ),
    ),
    **{f"message of {role}": (rows, Message, in_message(role)) for role, rows in table.MESSAGES.items()},
    "part": (
        table.TEXT_PART,
        TextPart,
        (
            CHAT,
            {"messages": [{"role": "user", "content": [PART, {**PART}]}]},
            lambda request: request["messages"][0]["content"][1],
            "messages.0.content.1.",
        ),
    ),
    "tool call": (
        table.TOOL_CALL,
        ToolCall,
        (
            CHAT,
            {"messages": [TURN, CALLER]},
            lambda request: request["messages"][1]["tool_calls"][0],
            "messages.1.tool_calls.0.",
        ),
    ),
    "called function": (
        table.CALLED_FUNCTION,
        CalledFunction,
        (
            CHAT,
            {"messages": [TURN, CALLER]},
            lambda request: request["messages"][1]["tool_calls"][0]["function"],
            "messages.1.tool_calls.0.function.",
        ),
    ),
    "tool": (
        table.TOOL,
        Tool,
        (CHAT, {"messages": [TURN], "tools": [table.FUNCTION]}, lambda request: request["tools"][0], "tools.0."),
    ),
    "function of a tool": (
        table.TOOL_FUNCTION,
        Function,
        (
            CHAT,
            {"messages": [TURN], "tools": [table.FUNCTION]},
            lambda request: request["tools"][0]["function"],
            "tools.0.function.",
        ),
    ),
}
NULL_SAYS_SOMETHING = ("text", "input_ids", "content", "arguments", "parameters", "id")
"""It takes away what the request without the field has here."""
CASES = [(place, name) for place, (rows, _, _) in PLACES.items() for name in rows]


def bodies(place, name, values, beside=None):
    """The request without the field, and for each of the values one with it."""
    path, body, inner, where = PLACES[place][2]
    plain = copy.deepcopy({**body, **(beside or {})})
    found = []
    for value in values:
        made = copy.deepcopy(plain)
        inner(made)[name] = value
        if name in ("text", "input_ids") and place == "generate":
            made = {name: value}
        found.append(made)
    return path, plain, found, where + name


@pytest.mark.parametrize(("place", "name"), CASES)
def test_what_becomes_of_a_field(outcome_of, place, name):
    row = PLACES[place][0][name]
    path, plain, (changed,), field = bodies(place, name, [row.value], row.beside)
    before, after = outcome_of(path, plain), outcome_of(path, changed)
    assert before[0] == 200, before[2]
    if row.outcome == "refused":
        assert (after[0], after[3].json()["error"]["param"]) == (400, field), after[2]
        assert field in after[3].json()["error"]["message"]
        assert after[1] == [], "the engine was asked"
    elif row.outcome == "used":
        assert after[0] == row.status, after[2]
        assert after[:3] != before[:3], f"{field} is accepted and dropped"
    else:
        assert after[:3] == before[:3]


@pytest.mark.parametrize(("place", "name"), CASES)
def test_what_asks_for_nothing(outcome_of, place, name):
    row, kind = PLACES[place][0][name], PLACES[place][1]
    field = kind.model_fields.get(name)
    nullable = name in known(kind) and not (field and field.is_required()) and name not in NULL_SAYS_SOMETHING
    values = [*row.nothing, *([None] if nullable else [])]
    path, plain, changed, _ = bodies(place, name, values, row.beside)
    before = outcome_of(path, plain)
    for body in changed:
        assert outcome_of(path, body)[:3] == before[:3], body


def known(kind: type[Fields]) -> set[str]:
    return {*kind.model_fields, *kind.unsupported, *kind.without_effect}


@pytest.mark.parametrize("place", PLACES)
def test_the_table_has_every_field_that_the_server_knows(place):
    rows, kind, _ = PLACES[place]
    assert known(kind) - set(rows) <= {"seed"} if kind is SglangSampling else known(kind) <= set(rows)


def test_the_table_of_aborts():
    assert known(AbortRequest) == set(table.ABORT)


@pytest.mark.parametrize("part", table.OTHER_PARTS, ids=lambda part: part["type"])
def test_parts_that_are_no_text(outcome_of, part):
    """A conversation must not be answered without its image."""
    status, asked, _, answer = outcome_of(CHAT, {"messages": [TURN, {"role": "user", "content": [PART, part]}]})
    assert (status, asked) == (400, [])
    assert answer.json()["error"]["param"] == "messages.1.content.1.type"


# ---- the interfaces themselves


def openai_kinds():
    from openai.types import chat, completion_create_params
    from openai.types.chat import chat_completion_assistant_message_param as assistant
    from openai.types.chat import chat_completion_message_custom_tool_call_param as custom_call
    from openai.types.chat import chat_completion_message_function_tool_call_param as function_call
    from openai.types.chat import completion_create_params as chat_params
    from openai.types.shared_params import FunctionDefinition

    messages = {role: [getattr(chat, f"ChatCompletion{role.title()}MessageParam")] for role in table.MESSAGES}
    return {
        "completion": typing.get_args(completion_create_params.CompletionCreateParams),
        "chat": typing.get_args(chat_params.CompletionCreateParams),
        "stream options": [chat.ChatCompletionStreamOptionsParam],
        **{f"message of {role}": kinds for role, kinds in messages.items()},
        "part": [chat.ChatCompletionContentPartTextParam],
        "tool call": [
            function_call.ChatCompletionMessageFunctionToolCallParam,
            custom_call.ChatCompletionMessageCustomToolCallParam,
        ],
        "called function": [function_call.Function, assistant.FunctionCall],
        "tool": typing.get_args(chat.ChatCompletionToolUnionParam),
        "function of a tool": [FunctionDefinition],
    }


def missing(kinds, rows):
    """Fields that the table has not."""
    return {name for kind in kinds for name in typing.get_type_hints(kind)} - set(rows)


@pytest.mark.parametrize("place", openai_kinds())
def test_the_table_has_every_field_of_openais_package(place):
    assert not missing(openai_kinds()[place], PLACES[place][0]), "what becomes of them?"


def test_the_table_has_every_role_and_part_of_openais_package():
    from openai.types import chat

    speakers = typing.get_args(chat.ChatCompletionMessageParam)
    roles = {role for kind in speakers for role in typing.get_args(_literal(kind, "role"))}
    assert roles == set(table.MESSAGES)
    kinds = [*typing.get_args(chat.ChatCompletionContentPartParam), chat.ChatCompletionContentPartRefusalParam]
    parts = {one for kind in kinds for one in typing.get_args(_literal(kind, "type"))}
    assert parts == {"text"} | {part["type"] for part in table.OTHER_PARTS} - SGLANGS_PARTS


SGLANGS_PARTS = {"thinking", "video_url", "audio_url", "tool_reference"}


def _literal(kind, name):
    return typing.get_type_hints(kind)[name]


def test_the_table_has_every_field_of_sglang():
    io_struct = pytest.importorskip("sglang.srt.managers.io_struct")
    from sglang.srt.entrypoints.openai import protocol
    from sglang.srt.sampling.sampling_params import SamplingParams

    generic = set(protocol.ChatCompletionMessageGenericParam.model_fields)
    assert {field.name for field in dataclasses.fields(io_struct.GenerateReqInput)} <= set(table.GENERATE)
    assert set(SamplingParams.__struct_fields__) <= set(table.SAMPLING)
    assert set(io_struct.AbortReq.__struct_fields__) <= set(table.ABORT)
    assert set(protocol.CompletionRequest.model_fields) <= set(table.COMPLETION)
    assert set(protocol.ChatCompletionRequest.model_fields) <= set(table.CHAT)
    assert set(protocol.StreamOptions.model_fields) <= set(table.STREAM_OPTIONS)
    for role in set(table.MESSAGES) - {"user"}:
        assert generic <= set(table.MESSAGES[role])
    assert set(protocol.ToolCall.model_fields) <= set(table.TOOL_CALL)
    assert set(protocol.Tool.model_fields) <= set(table.TOOL)
    assert set(protocol.Function.model_fields) <= set(table.TOOL_FUNCTION)


# ---- names that nobody knows, and fields that contradict each other


@pytest.mark.parametrize(
    ("path", "body", "field", "hint"),
    [
        (GENERATE, {"text": "1", "max_new_tokens": 5}, "max_new_tokens", "use sampling_params.max_new_tokens instead"),
        (GENERATE, {"text": "1", "steam": True}, "steam", "did you mean 'stream'?"),
        (GENERATE, {"text": "1", "sampling_params": {"temprature": 0}}, "sampling_params.temprature", "'temperature'?"),
        (COMPLETIONS, {"prompt": "1", "max_new_tokens": 5}, "max_new_tokens", "use max_tokens instead"),
        (COMPLETIONS, {"prompt": "1", "made_up": None}, "made_up", "does not know"),
        (CHAT, {"messages": [TURN], "stop_sequences": ["a"]}, "stop_sequences", "does not know"),
        (CHAT, {"messages": [TURN | {"contents": "a"}]}, "messages.0.contents", "did you mean 'content'?"),
        (CHAT, {"messages": [TURN], "stream": True, "stream_options": {"usage": 1}}, "stream_options.usage", "know"),
        (CHAT, {"messages": [TURN], "functions": [{"name": "a"}]}, "functions", "use tools instead"),
        (CHAT, {"messages": [TURN], "max_tokens": 3, "max_completion_tokens": 5}, "max_tokens", "give one"),
        (CHAT, {"messages": [TURN], "tool_choice": "required"}, "tool_choice", "'none' or 'auto'"),
        (CHAT, {"messages": [TURN], "tool_choice": {"type": "function"}}, "tool_choice", "'none' or 'auto'"),
        (GENERATE, {"text": "1", "top_logprobs_num": 2}, "top_logprobs_num", "needs return_logprob"),
        (GENERATE, {"text": "1", "return_text_in_logprobs": True}, "return_text_in_logprobs", "needs return_logprob"),
        (GENERATE, {"text": "1", "sampling_params": {"seed": 1, "sampling_seed": 2}}, "sampling_params.seed", "one"),
        ("/generate?stream=true", {"text": "1"}, "stream", "fields go into a JSON body"),
        ("/v1/completions?n=2", {"prompt": "1"}, "n", "fields go into a JSON body"),
        ("/abort_request", {"rid": "a", "abort_message": "b"}, "abort_message", "is not supported"),
        ("/abort_request", {"id": "a"}, "id", "did you mean 'rid'?"),
        ("/flush_cache?time=3", {}, "time", "fields go into a JSON body"),
    ],
)
def test_names_that_nobody_knows(outcome_of, path, body, field, hint):
    status, asked, _, answer = outcome_of(path, body)
    assert (status, asked) == (400, [])
    assert answer.json()["error"]["param"] == field
    assert hint in answer.json()["error"]["message"]


def test_what_a_client_says_back(outcome_of):
    """Clients send an answer's message back as they got it, with all that was null in it."""
    answer = outcome_of(CHAT, {"messages": [TURN]})[3].json()["choices"][0]["message"]
    nulls = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content"))
    assert outcome_of(CHAT, {"messages": [TURN, {**nulls, **answer}, TURN]})[0] == 200


def test_the_timeout_of_a_cache_that_is_empty(outcome_of):
    assert outcome_of("/flush_cache?timeout=3", {})[0] == 200


def test_usage_in_every_event(outcome_of):
    asked = {"prompt": "12+30=", "stream": True, "stream_options": {"continuous_usage_stats": True}}
    counts = re.findall(r'"completion_tokens":(\d+)', outcome_of(COMPLETIONS, asked)[2])
    assert counts == ["1", "2", "2"]
