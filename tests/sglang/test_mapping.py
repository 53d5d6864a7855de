"""Our requests in SGLang's words, and its answers in ours."""

from __future__ import annotations

import pytest

from raylaunch.errors import RequestError, RequestFailed
from raylaunch.frontends.requests import Chunk
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.sglang.mapping import (
    StreamedAnswer,
    failure_of,
    finish_of,
    image_data,
    logprob_arguments,
    note,
    sampling_parameters,
)
from raylaunch.tracing.spans import RequestFacts
from raylaunch.wire import TokenLogprob


def output(text, ids, finish=None, **meta):
    """What SGLang streams: everything so far."""
    return {"text": text, "output_ids": ids, "meta_info": {"prompt_tokens": 3, "finish_reason": finish, **meta}}


def stopped(matched):
    return {"type": "stop", "matched": matched}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"max_new_tokens": 128, "temperature": 0.0, "top_k": -1, "sampling_seed": None, "no_stop_trim": False}),
        ({"top_k": 7, "top_p": 0.5, "seed": 3}, {"top_k": 7, "top_p": 0.5, "sampling_seed": 3}),
        ({"stop": "END"}, {"stop": ["END"], "no_stop_trim": True}),
        ({"stop_token_ids": [4], "ignore_eos": True}, {"stop_token_ids": [4], "ignore_eos": True, "stop": None}),
    ],
)
def test_sampling_parameters(ours, theirs):
    assert theirs.items() <= sampling_parameters(SamplingParams(**ours)).items()


def test_what_sglang_has_preferences_for_is_sent_only_if_the_request_sets_it():
    preferred = ("temperature", "sampling_seed", "min_p")
    found = sampling_parameters(SamplingParams(top_k=3), preferred)
    assert not {"temperature", "sampling_seed"} & set(found)
    assert found["top_k"] == 3
    assert sampling_parameters(SamplingParams(temperature=0.0, seed=1), preferred)["temperature"] == 0.0


def test_further_parameters_are_passed_on():
    extra = {"min_p": 0.1, "json_schema": "{}"}
    assert extra.items() <= sampling_parameters(SamplingParams(temperature=0.5, extra=extra)).items()


@pytest.mark.parametrize(
    ("name", "text"),
    [("temperature", "set by 'temperature'"), ("sampling_seed", "set by 'seed'"), ("n", "a request has one answer")],
)
def test_what_cannot_be_passed_on(name, text):
    with pytest.raises(RequestError, match=text):
        sampling_parameters(SamplingParams(extra={name: 2}))


def test_log_probabilities_are_asked_for_only_if_they_are_wanted():
    assert logprob_arguments(SamplingParams()) == {}
    wanted = {"return_logprob": True, "logprob_start_len": -1, "top_logprobs_num": 0}
    assert logprob_arguments(SamplingParams(logprobs=0)) == wanted


def taken(outputs, incremental=False, **params):
    answer = StreamedAnswer("r", SamplingParams(**params), incremental=incremental)
    items = [item for item in map(answer.receive, outputs) if item is not None]
    return items, answer.prompt_tokens


def test_what_is_repeated_is_cut_off():
    ids = [1, 2]  # SGLang hands out one growing list
    first = output("ab", ids)
    items, prompt_tokens = taken([first, output("ab", ids), output("abc", [1, 2, 3], {"type": "length", "length": 3})])
    assert items == [Chunk("r", "ab", (1, 2)), Chunk("r", "c", (3,), "length")]
    assert prompt_tokens == 3


def test_nothing_is_cut_off_of_an_incremental_stream():
    items, _ = taken([output("ab", [1, 2]), output("ab", [1, 2], {"type": "length"})], incremental=True)
    assert [(chunk.text, chunk.token_ids) for chunk in items] == [("ab", (1, 2)), ("ab", (1, 2))]


def test_the_token_that_ended_it_is_no_part_of_it():
    items, _ = taken([output("a", [5]), output("a", [5, 2], stopped(2))])
    assert items == [Chunk("r", "a", (5,)), Chunk("r", "", (), "stop", matched=2)]


def test_a_stop_string_is_never_shown_however_it_is_cut():
    cuts = [output("xE", [1]), output("xEN", [1, 2]), output("xEND", [1, 2, 3], stopped("END"))]
    items, _ = taken(cuts, stop=["END"])
    assert [chunk.text for chunk in items] == ["x", "", ""]
    assert items[-1].finish_reason == "stop"


def test_the_beginning_of_a_stop_string_that_ends_with_a_special_token_is_not_shown():
    items, _ = taken([output("x", [1]), output("x\n", [1, 2, 3], stopped("\n<|im_end|>"))], stop=["\n<|im_end|>"])
    assert [(chunk.text, chunk.matched) for chunk in items] == [("x", None), ("", "\n<|im_end|>")]


def test_what_only_began_like_a_stop_string_is_shown():
    items, _ = taken([output("xE", [1]), output("xE", [1], {"type": "length"})], stop=["END"])
    assert "".join(chunk.text for chunk in items) == "xE"


def test_log_probabilities():
    logprobs, tops = [(-0.5, 7, None)], [[(-0.5, 7, None), (-1.0, 8, None)]]
    first = output("a", [7], output_token_logprobs=logprobs, output_top_logprobs=tops)
    more = {"output_token_logprobs": [*logprobs, (-0.25, 9, None)], "output_top_logprobs": [*tops, None]}
    items, _ = taken([first, output("ab", [7, 9], {"type": "length"}, **more)], logprobs=2)
    assert items[0].logprobs == (TokenLogprob(7, -0.5, [(7, -0.5), (8, -1.0)]),)
    assert items[1].logprobs == (TokenLogprob(9, -0.25, []),)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [(None, None), ({"type": "length"}, "length"), (stopped(2), "stop"), ({"type": "abort"}, "abort")],
)
def test_how_it_ended(reason, finish):
    assert finish_of(reason) == finish
    assert failure_of("r", reason) is None


@pytest.mark.parametrize(("status", "kind"), [(400, RequestError), (500, RequestFailed), (503, RequestFailed)])
def test_what_sglang_gives_up_is_an_error(status, kind):
    answer = StreamedAnswer("r", SamplingParams())
    error = answer.receive(output("", [], {"type": "abort", "status_code": status, "message": "too long"}))
    assert isinstance(error, kind)
    assert "too long" in str(error)


def test_images(tmp_path):
    file = tmp_path / "image"
    file.write_bytes(b"data")
    url, uri = "https://host/a.png", "data:image/png;base64,AA=="
    assert image_data([str(file), file, b"raw", url, uri]) == (b"data", b"data", b"raw", url, uri)


def test_one_image_is_a_list_of_one():
    with pytest.raises(RequestError, match="must be a list"):
        image_data("photo.jpg")


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("/nowhere.png", "image 1 cannot be read"),
        ("~nobody-of-this-name/a.png", "image 1 cannot be read"),
        (7, "image 1 is a int: it must be a path"),
    ],
)
def test_what_is_no_image(image, text):
    with pytest.raises(RequestError, match=text):
        image_data([b"", image])


def test_what_is_noted_for_a_requests_span():
    facts = RequestFacts("POST", "/generate")
    meta = {"id": "a", "prompt_tokens": 6, "completion_tokens": 2, "finish_reason": None}
    note(facts, {"meta_info": meta}, first_token=True)
    began = facts.first_token
    assert began
    note(facts, {"meta_info": {**meta, "completion_tokens": 3, "finish_reason": {"type": "stop"}}}, first_token=True)
    assert (facts.tokens, facts.reasons, facts.first_token) == ({"a": (6, 3)}, ["stop"], began)
    other = RequestFacts("POST", "/v1/embeddings")
    note(other, [{"embedding": [0.5], "meta_info": {"id": "b", "prompt_tokens": 4}}, {"text": ""}], first_token=False)
    assert (other.tokens, other.first_token) == ({"b": (4, 0), None: (0, 0)}, 0.0)


def test_a_stop_string_that_the_last_allowed_token_completes():
    """SGLang says that the length ended it, and our text ends before the stop string."""
    answer = StreamedAnswer("r", SamplingParams(stop="END"))
    length = {"type": "length", "length": 3}
    assert answer.receive(output("abEND", [1, 2, 3], length)) == Chunk("r", "ab", (1, 2, 3), "stop", None, "END")
