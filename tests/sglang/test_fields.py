"""Fields of a request that do not fit together, over which SGLang would fail and say nothing of use."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
import torch

from raylaunch.errors import RequestError
from raylaunch.sglang.fields import ONE_PER_PROMPT, FieldLimits, check_fields, embeds_problem

FIELDS = (
    "image_data", "video_data", "audio_data",
    *ONE_PER_PROMPT, "text", "input_ids", "input_embeds", "session_params", "token_ids_logprob", "lora_id",
    "positional_embed_overrides", "custom_labels",
)  # fmt: skip
LIMITS = FieldLimits(16, 2, labels=frozenset({"team"}))


class Session(msgspec.Struct, kw_only=True, array_like=True):
    """Two of SGLang's fields."""

    id: str | None = None
    offset: int | None = None


def check(fields, limits=LIMITS):
    check_fields(SimpleNamespace(**{**dict.fromkeys(FIELDS), **fields}), Session, limits)


def override(*rows):
    return SimpleNamespace(positions=[0], embeds=torch.tensor(rows))


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "a"},
        {"text": "", "image_data": "a", "rid": "r", "sampling_params": {}, "top_logprobs_num": 3},
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
        {"text": "a", "top_logprobs_num": 16, "logprob_start_len": -1},
        {"text": ["a", "b"], "top_logprobs_num": [0, 16], "logprob_start_len": [0, 4000]},
        {"text": ["a", "b"], "token_ids_logprob": [3, 4, 5]},
        {"text": ["a", "b"], "token_ids_logprob": [[3, 4, 5], [6]]},
        {"input_embeds": [[0.5, -1e30], [0.0, 3]]},
        {"text": "a", "positional_embed_overrides": override([0.5, 0.5])},
        {"text": ["a", "b"], "positional_embed_overrides": [None, override([0.5, 0.5])]},
        {"text": "a", "custom_labels": {"team": "b"}},
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
        ({"text": "a", "top_logprobs_num": 17}, "top_logprobs_num = 17: it must be at least 0 and at most 16"),
        ({"text": "a", "top_logprobs_num": -1}, "top_logprobs_num = -1"),
        ({"text": ["a", "b"], "top_logprobs_num": [3, 999]}, "top_logprobs_num = 999"),
        ({"text": "a", "logprob_start_len": -5}, "logprob_start_len = -5: it must be at least -1$"),
        ({"text": ["a", "b"], "logprob_start_len": [0, -2]}, "logprob_start_len = -2"),
        ({"text": ["a", "b"], "token_ids_logprob": [[3]]}, "token_ids_logprob has length 1: it needs 2"),
        ({"input_embeds": [[0.5, 0.5], [0.5]]}, "row 1 of input_embeds has length 1: an embedding .* has 2 numbers"),
        ({"input_embeds": [[[0.5, 0.5]], [[0.5, 0.5, 0.5]]]}, "row 0 of input_embeds has length 3"),
        ({"input_embeds": [[0.5, 1e300]]}, "row 0 of input_embeds has a number that is not from"),
        ({"input_embeds": [[0.5, float("nan")]]}, "row 0 of input_embeds has a number that is not from"),
        ({"text": "a", "positional_embed_overrides": {"positions": [0]}}, "positional_embed_overrides is SGLang's own"),
        ({"text": ["a"], "positional_embed_overrides": [[0.5, 0.5]]}, "positional_embed_overrides is SGLang's own"),
        ({"text": "a", "positional_embed_overrides": override([0.5])}, "in a token's place has length 1"),
        ({"text": "a", "positional_embed_overrides": override([0.5, 1e39])}, "in a token's place has a number"),
        ({"text": "a", "lora_id": "one"}, "lora_id is SGLang's own: name an adapter by lora_path"),
        ({"text": "a", "custom_labels": {"team": "b", "user": "c"}}, "custom_labels has 'user'"),
        ({"text": "a", "session_params": {"ofset": 1}}, "no session parameter 'ofset'; did you mean 'offset'"),
        ({"text": "a", "session_params": {"offset": "1"}}, "session parameter offset = '1': expected `int | null`"),
    ],
)
def test_what_is_refused(fields, text):
    with pytest.raises(RequestError, match=text):
        check(fields)


def test_labels_of_figures_that_nobody_keeps():
    check({"text": "a", "custom_labels": {"user": "c"}}, FieldLimits(16, 2))


@pytest.mark.parametrize(
    ("dtype", "max_running", "prefix_cache", "missing"),
    [
        ("bfloat16", 1, False, ""),
        ("float32", 1, False, "model.dtype=bfloat16"),
        ("bfloat16", 8, False, "engine.max_running_requests=1"),
        ("bfloat16", None, True, "engine.max_running_requests=1 and engine.sglang.args.disable_radix_cache=true"),
        ("float16", 1, True, "model.dtype=bfloat16 and engine.sglang.args.disable_radix_cache=true"),
    ],
)
def test_where_a_prompt_can_be_embeddings(dtype, max_running, prefix_cache, missing):
    assert embeds_problem(dtype, max_running, prefix_cache).partition("started with ")[2] == missing


def test_embeddings_where_the_ranks_would_fail_over_them():
    with pytest.raises(RequestError, match="input_embeds: the reason"):
        check({"input_embeds": [[0.5, 0.5]]}, FieldLimits(16, 2, "the reason"))
    check({"input_ids": [3], "input_embeds": [[0.5]]}, FieldLimits(16, 2, "the reason"))  # is not looked at
