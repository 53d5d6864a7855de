"""Sampling parameters that SGLang would not refuse before they have done harm."""

from __future__ import annotations

import re

import msgspec
import pytest

from raylaunch.errors import RequestError
from raylaunch.sglang.sampling import check_parameters


class Parameters(msgspec.Struct, kw_only=True, array_like=True):
    """A few of SGLang's, with what its class does when one is made."""

    max_new_tokens: int | None = 128
    temperature: float = 1.0
    regex: str | None = None
    stop_token_ids: set[int] | None = None
    logit_bias: dict[str, float] | None = None
    n: int = 1
    top_k: int = -1
    repetition_penalty: float = 1.0
    sampling_seed: int | None = None
    stop_regex: str | None = None
    stop_strs: list[str] | None = None
    is_normalized: bool = False

    def __post_init__(self) -> None:
        self.temperature = 1.0 if self.temperature is None else self.temperature
        if 0 <= self.temperature < 1e-6:
            self.temperature = 1.0
        if self.stop_token_ids:
            self.stop_token_ids = {int(token) for token in self.stop_token_ids if token is not None}

    def normalize(self, tokenizer):
        if self.stop_regex is not None:
            re.compile(self.stop_regex)

    def verify(self, vocab_size):
        if self.max_new_tokens is not None and self.max_new_tokens < 0:
            raise ValueError("max_new_tokens must be at least 0")


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"max_new_tokens": 5, "temperature": 0, "regex": None},
        {"temperature": None, "max_new_tokens": None},
        {"stop_token_ids": [3, None], "logit_bias": {"4": 1}},
        {"max_new_tokens": 5.0},
        {"stop_token_ids": [0, 15], "logit_bias": {"4": -1e30, "5": 1e30}},
        {"n": 4096, "top_k": 2**31 - 1, "repetition_penalty": 0.1, "sampling_seed": -(2**63), "stop_regex": "a+"},
    ],
)
def test_what_sglang_takes(parameters):
    check_parameters(parameters, Parameters, None, 16)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"max_tokens": 5}, "no sampling parameter 'max_tokens'; did you mean 'max_new_tokens'"),
        ({"banana": 5}, "no sampling parameter 'banana'$"),
        ({"max_new_tokens": "5"}, "max_new_tokens = '5': expected `int | null`, got `str`"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0"),
        ({"max_new_tokens": 5.5}, "max_new_tokens = 5.5: expected `int | null`, got `float`"),
        ({"temperature": "hot"}, "temperature = 'hot': expected `float`, got `str`"),
        ({"max_new_tokens": 5, "regex": 7}, "regex = 7: expected `str | null`, got `int`"),
        ({"stop_token_ids": 7}, "stop_token_ids = 7: expected `array | null`, got `int`"),
        ({"logit_bias": [4]}, "logit_bias = .*: expected `object | null`, got `array`"),
        ({"logit_bias": {"4": "1"}}, "logit_bias = .*: expected `float`, got `str`"),
        ({"logit_bias": {"4": 1e39}}, r"logit_bias: bias of token 4 = 1e\+39: it must be from -1e\+30 to 1e\+30"),
        ({"logit_bias": {"4": float("nan")}}, "bias of token 4 = nan"),
        ({"stop_token_ids": [3, 16]}, "stop_token_ids: token = 16: it must be from 0 to 15"),
        ({"stop_token_ids": [-3]}, "stop_token_ids: token = -3"),
        ({"n": 0}, "n = 0: it must be from 1 to 4096"),
        ({"n": 5000}, "n = 5000"),
        ({"top_k": 2**31}, "top_k = 2147483648: it must be from -1 to 2147483647"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty = 1e-40: it must be from 1e-06 to 2.0"),
        ({"sampling_seed": 2**63}, "sampling_seed = 9223372036854775808"),
        ({"stop_regex": "("}, r"stop_regex = '\(': missing \), unterminated subpattern"),
    ],
)
def test_what_is_refused(parameters, text):
    with pytest.raises(RequestError, match=text):
        check_parameters(parameters, Parameters, None, 16)


@pytest.mark.parametrize("name", ["stop_strs", "is_normalized"])
def test_what_sglang_fills_itself_is_no_parameter(name):
    with pytest.raises(RequestError, match=f"SGLang has no sampling parameter '{name}'"):
        check_parameters({name: True}, Parameters, None, 16)


@pytest.mark.parametrize(
    ("parameters", "seeded"),
    [
        ({"sampling_seed": 3}, True),
        ({"sampling_seed": None}, False),
        ({"sampling_seed": 3, "top_k": 1}, False),  # the likeliest token, whatever the seed
    ],
)
def test_a_seed_that_changes_nothing_or_is_looked_at(parameters, seeded):
    check_parameters(parameters, Parameters, None, 16, seeded=seeded)


def test_a_seed_that_no_rank_looks_at():
    with pytest.raises(RequestError, match=r"sampling_seed: .*enable_deterministic_inference=true is set"):
        check_parameters({"sampling_seed": 3}, Parameters, None, 16, seeded=False)
