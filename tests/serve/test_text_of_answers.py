"""Text, ends and log probabilities of answers whose tokens the test decides, at every endpoint, whole and streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from raylaunch.frontends.requests import Chunk, RunningRequest
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.wire import Output, TokenLogprob
from tests.serve.answering_engine import AnsweringEngine
from tests.serve.conftest import events_of
from tests.small_tokenizers import byte_level, metaspace

EMOJI = list("😀".encode())
PATHS = ("/generate", "/v1/completions", "/v1/chat/completions")


class ScriptedEngine(AnsweringEngine):
    """Answers every prompt with the same tokens, one after the other, then with the token that ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.script, self.end = byte_level(), [0x47], byte_level().eos_token_id

    @property
    def tokenizer(self) -> Any:
        return self.model

    @property
    def shape(self) -> Any:
        return replace(super().shape, vocab_size=len(self.model))

    async def astream(
        self, prompt: Sequence[int], params: SamplingParams | None = None, *, request_id: str = "r"
    ) -> AsyncIterator[Chunk]:
        params = params or SamplingParams()
        self.asked_for.append((list(prompt), params))
        chunks: list[Any] = []
        request = RunningRequest(request_id, list(prompt), params, self.model, chunks.append)
        for token in self.script[: params.max_new_tokens]:
            tops = [(token, -0.5), (EMOJI[1], -1.0), (EMOJI[2], -1.5)][: params.logprobs or 0]
            logprobs = None if params.logprobs is None else [TokenLogprob(token, -0.5, tops)]
            request.receive(Output(request_id, [token], None, logprobs=logprobs))
        long = len(self.script) > params.max_new_tokens
        request.receive(Output(request_id, [], "length") if long else Output(request_id, [], "stop", matched=self.end))
        for chunk in chunks:
            yield chunk


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


def asked(path: str, prompt: str, **more: Any) -> dict[str, Any]:
    if path == "/generate":
        return {
            "text": prompt,
            "sampling_params": {name: value for name, value in more.items() if name != "stream"},
        } | ({"stream": True} if more.get("stream") else {})
    if path == "/v1/completions":
        return {"prompt": prompt, "max_tokens": 128, **more}
    return {"messages": [{"role": "user", "content": prompt}], **more}


def answer(client: Any, path: str, prompt: str, stream: bool, **more: Any) -> tuple[str, str, Any]:
    """Text, why it ended, and what it stopped at."""
    response = client.post(path, json=asked(path, prompt, stream=stream, **more))
    assert response.status_code == 200, response.text
    if path == "/generate":
        last = events_of(response.text)[-1] if stream else response.json()
        reason = last["meta_info"]["finish_reason"]
        return last["text"], reason["type"], reason.get("matched")
    choices = [event["choices"][0] for event in events_of(response.text)] if stream else response.json()["choices"]
    texts = [
        one["text"] if "text" in one else (one.get("delta") or one.get("message") or {}).get("content", "")
        for one in choices
    ]
    return "".join(texts), choices[-1]["finish_reason"], choices[-1].get("matched_stop")


def everywhere(client: Any, prompt: str, **more: Any) -> tuple[str, str, Any]:
    """The answer, which is the same at every endpoint, whole and streamed."""
    found = {answer(client, path, prompt, stream, **more) for path in PATHS for stream in (False, True)}
    assert len(found) == 1, found
    return found.pop()


def test_a_stop_string_that_is_a_special_token(client, engine):
    end, start = engine.model.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    engine.script = [*b"G", end, start, *b"HI"]
    assert everywhere(client, "F", stop=["<|im_end|>"]) == ("G", "stop", "<|im_end|>")
    assert everywhere(client, "F", stop=["H"]) == ("G", "stop", "H")
    assert everywhere(client, "F") == ("GHI", "stop", engine.end)


def test_the_first_space_is_kept(client, engine):
    engine.model = metaspace()
    engine.script = engine.model.convert_tokens_to_ids(["▁Paris", "▁and"])
    assert everywhere(client, "the")[0] == " Paris and"


def test_a_stream_of_invalid_bytes_goes_on(client, engine):
    engine.script = [0x98] * 40
    events = events_of(client.post("/v1/completions", json=asked("/v1/completions", "X", stream=True)).text)
    assert [event["choices"][0]["text"] for event in events] == ["\ufffd"] * 40 + [""]
    assert everywhere(client, "X")[0] == "\ufffd" * 40


def test_log_probabilities_of_parts_of_a_character_in_a_chat(client, engine):
    engine.script = EMOJI
    more = {"logprobs": True, "top_logprobs": 3}
    found = client.post(PATHS[2], json=asked(PATHS[2], "A", **more)).json()["choices"][0]["logprobs"]["content"]
    assert [one["bytes"] for one in found] == [[240], [159], [152], [128]]
    assert found[0]["token"] == "bytes:\\xf0"
    assert [one["bytes"] for one in found[0]["top_logprobs"]] == [[240], [159], [152]]
    events = events_of(client.post(PATHS[2], json=asked(PATHS[2], "A", stream=True, **more)).text)
    entries = [one for event in events for one in (event["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert entries == found


def test_log_probabilities_of_parts_of_a_character_in_a_completion(client, engine):
    special = engine.model.convert_tokens_to_ids("<|im_start|>")
    engine.script = [*b"a", *EMOJI, special, *b"b"]
    found = client.post(PATHS[1], json=asked(PATHS[1], "A", logprobs=3)).json()["choices"][0]
    assert found["text"] == "a😀b"
    logprobs = found["logprobs"]
    labels = [f"bytes:\\x{byte:02x}" for byte in EMOJI]
    assert logprobs["tokens"] == ["a", *labels, "<|im_start|>", "b"]
    assert logprobs["text_offset"] == [0, 1, 1, 1, 1, 2, 2]
    assert logprobs["top_logprobs"][1] == {labels[0]: -0.5, labels[1]: -1.0, labels[2]: -1.5}
    events = events_of(client.post(PATHS[1], json=asked(PATHS[1], "A", stream=True, logprobs=3)).text)
    parts = [event["choices"][0]["logprobs"]["text_offset"] for event in events]
    assert [offset for part in parts for offset in part] == logprobs["text_offset"]


@pytest.mark.parametrize("path", PATHS)
def test_the_models_own_sampling_holds_where_a_request_says_nothing(client, engine, path):
    engine.sampling_defaults = {"temperature": 0.6, "top_k": 1, "top_p": 0.95}
    for more in ({}, {"temperature": 0}, {"top_k": -1, "top_p": 1.0}, {"temperature": None}):
        client.post(path, json=asked(path, "A", **more))
    found = [(params.temperature, params.top_k, params.top_p) for _, params in engine.asked_for]
    assert found == [(0.6, 1, 0.95), (0.0, 1, 0.95), (0.6, 0, 1.0), (0.6, 1, 0.95)]
