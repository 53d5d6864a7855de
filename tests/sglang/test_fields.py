"""Fields of a request that do not fit together, over which SGLang would fail and say nothing of use."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from raylaunch.errors import RequestError
from raylaunch.sglang.fields import ONE_PER_PROMPT, check_fields

FIELDS = (*ONE_PER_PROMPT, "text", "input_ids", "input_embeds", "session_params")


class Session(msgspec.Struct, kw_only=True, array_like=True):
    """Two of SGLang's fields."""

    id: str | None = None
    offset: int | None = None


def check(fields):
    check_fields(SimpleNamespace(**{**dict.fromkeys(FIELDS), **fields}), Session, 16)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "a"},
        {"text": "", "rid": "r", "sampling_params": {}, "top_logprobs_num": 3},  # with an image, perhaps
        {"text": "a", "rid": ["r"], "sampling_params": {"n": 2}},  # a list of one prompt to SGLang
        {"text": [], "sampling_params": []},
        {"text": ["a"], "rid": ["r"], "sampling_params": [{"n": 2}]},
        {"text": ["a", "b"], "rid": "r", "return_logprob": [True, False], "sampling_params": {"n": 2}},
        {"input_ids": [5, 6], "lora_path": "one"},
        {"input_ids": [[5, 6], [7]], "lora_path": ["one", None]},
        {"text": "a", "input_ids": []},  # is not looked at
        {"input_ids": [0, 15]},
        {"input_embeds": [[0.5, 0.5]], "top_logprobs_num": 3},
        {"input_embeds": [[[0.5, 0.5]]], "top_logprobs_num": [3]},
        {"text": "a", "session_params": {"id": "s", "offset": 3}},
        {"text": "a", "session_params": {}},
    ],
)
def test_what_sglang_takes(fields):
    check(fields)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "there is no prompt: give text, input_ids or input_embeds"),
        ({"input_ids": []}, "the prompt is empty"),
        ({"input_ids": [[5], []]}, "the prompt is empty"),
        ({"input_ids": [5, 16]}, "token 1 of the prompt is 16: token ids are integers from 0 to 15"),
        ({"input_ids": [[5], [-1]]}, "token 0 of the prompt is -1: token ids are integers from 0 to 15"),
        ({"input_embeds": []}, "the prompt is empty"),
        ({"input_embeds": [[]]}, "the prompt is empty"),
        ({"text": "a", "rid": ["r"]}, "rid is a list, and the prompt is in none: give one value"),
        ({"text": "a", "sampling_params": []}, "sampling_params is a list"),
        ({"text": "a", "sampling_params": [{}]}, "sampling_params is a list"),
        ({"input_ids": [5], "top_logprobs_num": [1]}, "top_logprobs_num is a list"),
        (
            {"text": "a", "rid": ["r", "s"], "sampling_params": {"n": 2}},
            "rid has length 2: it needs 1, one value for each prompt",
        ),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params has length 1: it needs 2"),
        ({"input_ids": [[5], [6]], "return_logprob": [True]}, "return_logprob has length 1: it needs 2"),
        ({"text": "a", "session_params": {"ofset": 1}}, "no session parameter 'ofset'; did you mean 'offset'"),
        ({"text": "a", "session_params": {"offset": "1"}}, "session parameter offset = '1': expected `int | null`"),
    ],
)
def test_what_is_refused(fields, text):
    with pytest.raises(RequestError, match=text):
        check(fields)
