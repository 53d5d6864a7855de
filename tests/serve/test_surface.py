"""What OpenAI's and SGLang's clients expect beside answers: echoes, biases, ids of requests, tokens of texts."""

from __future__ import annotations

import pytest

from raylaunch.frontends.requests import Chunk
from raylaunch.serve.reference.openai_schema import DetokenizeRequest, TokenizeRequest
from raylaunch.wire import TokenLogprob
from tests.serve.answering_engine import AnsweringEngine
from tests.serve.conftest import events_of

COMPLETIONS = "/v1/completions"


class ScoringEngine(AnsweringEngine):
    """Its first chunk has log probabilities of the prompt, its last one that of the end, where they are asked for."""

    def _chunk(self, request_id, token, params):
        chunk = super()._chunk(request_id, token, params)
        prompt = self.asked_for[-1][0]
        first = len(self.asked_for) not in self._scored
        self._scored.add(len(self.asked_for))
        scores = tuple(TokenLogprob(one, -0.25, [(one, -0.25)]) for one in prompt[1:])
        wanted = first and params.prompt_logprobs is not None
        return Chunk(request_id, chunk.text, chunk.token_ids, None, chunk.logprobs, None, scores if wanted else None)

    async def astream(self, prompt, params=None, *, request_id="r"):
        async for chunk in super().astream(prompt, params, request_id=request_id):
            if chunk.finish_reason == "stop" and params.prompt_logprobs is not None:
                chunk = Chunk(request_id, "", (), "stop", matched=2, matched_logprob=TokenLogprob(2, -0.125, []))
            yield chunk

    _scored: set[int]

    def __init__(self):
        super().__init__()
        self._scored = set()


@pytest.fixture
def engine():
    return ScoringEngine()


def complete(client, **body):
    answer = client.post(COMPLETIONS, json={"prompt": "12+30=", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ({}, ["12+30=42"]),
        ({"prompt": ["1+1=", "2+3="], "n": 2}, ["1+1=2", "1+1=2", "2+3=5", "2+3=5"]),
        ({"prompt": [5, 14, 6, 15]}, ["1+2=3"]),
        ({"max_tokens": 1}, ["12+30=4"]),
    ],
)
def test_an_echo_has_the_prompt_first(client, body, texts):
    answer = complete(client, echo=True, **body)
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert all(choice["logprobs"] is None for choice in answer["choices"])


def test_an_echo_with_log_probabilities_scores_the_prompt_and_the_end(client, engine):
    found = complete(client, echo=True, logprobs=1)["choices"][0]["logprobs"]
    assert found["tokens"] == ["1", "2", "+", "3", "0", "=", "4", "2", "<eos>"]
    assert found["token_logprobs"] == [None, *[-0.25] * 5, -0.5, -0.5, -0.125]
    assert found["top_logprobs"][:2] == [None, {"2": -0.25}]
    assert found["text_offset"] == [*range(8), 8]
    assert engine.asked_for[0][1].prompt_logprobs == 1


def test_without_an_echo_nothing_of_the_prompt_is_asked_for(client, engine):
    assert complete(client, logprobs=1)["choices"][0]["logprobs"]["tokens"] == ["4", "2"]
    assert engine.asked_for[0][1].prompt_logprobs is None


def test_a_streamed_echo_says_the_prompt_once(client):
    body = {"prompt": "12+30=", "echo": True, "stream": True, "logprobs": 0}
    events = events_of(client.post(COMPLETIONS, json=body).text)
    assert "".join(event["choices"][0]["text"] for event in events) == "12+30=42"
    tokens = [token for event in events for token in event["choices"][0]["logprobs"]["tokens"]]
    assert tokens == ["1", "2", "+", "3", "0", "=", "4", "2", "<eos>"]


@pytest.mark.parametrize(
    ("body", "status"),
    [({"best_of": 1}, 200), ({"best_of": 2, "n": 2}, 200), ({"best_of": None}, 200), ({"best_of": 3, "n": 2}, 400)],
)
def test_best_of_is_n(client, body, status):
    answer = client.post(COMPLETIONS, json={"prompt": "1+1=", **body})
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions", "/generate"])
@pytest.mark.parametrize(
    ("bias", "said"),
    [
        ({"4": -100, "15": 1.5}, ""),
        ({"x": 1}, "logit_bias has the key 'x': its keys are token ids, from 0 to 15"),
        ({"-1": 1}, "its keys are token ids"),
        ({"16": 1}, "logit_bias has the key '16'"),
        ({"4": "1"}, "logit_bias"),
        ({"4": 1e31}, "logit_bias"),
    ],
)
def test_logit_bias(client, engine, path, bias, said):
    asked = {
        COMPLETIONS: {"prompt": "1+1=", "logit_bias": bias},
        "/generate": {"text": "1+1=", "sampling_params": {"logit_bias": bias}},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "1+1="}], "logit_bias": bias},
    }
    answer = client.post(path, json=asked[path])
    if said:
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]
        assert engine.asked_for == []
    else:
        assert answer.status_code == 200, answer.text
        assert engine.asked_for[0][1].logit_bias == {4: -100.0, 15: 1.5}


@pytest.mark.parametrize(
    ("given", "kept"), [("mine-1", True), (None, False), ("with space", False), ("x" * 129, False), ("", False)]
)
@pytest.mark.parametrize("path", ["/health", "/no-such-path", "/v1/models"])
def test_every_answer_has_the_id_of_its_request(client_with, path, given, kept):
    headers = {} if given is None else {"x-request-id": given}
    found = client_with(api_key="k").get(path, headers=headers).headers["x-request-id"]
    assert found == given if kept else found.startswith("req_")


def test_two_requests_have_two_ids(client):
    body = {"prompt": "1+1=", "stream": True}
    first, second = (client.post(COMPLETIONS, json=body).headers["x-request-id"] for _ in range(2))
    assert first != second


def test_the_newer_interface_is_not_here_and_says_what_is(client):
    answer = client.post("/v1/responses", json={"input": "1+1="})
    assert answer.status_code == 404
    assert "use /v1/chat/completions" in answer.json()["error"]["message"]


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_tokens_of_texts_and_back(client, prefix):
    one = client.post(f"{prefix}/tokenize", json={"prompt": "12+30="}).json()
    assert one == {"tokens": [5, 6, 14, 7, 4, 15], "count": 6, "max_model_len": 2048}
    several = client.post(f"{prefix}/tokenize", json={"prompt": ["1", ""], "add_special_tokens": False}).json()
    assert (several["tokens"], several["count"]) == ([[5], []], [1, 0])
    assert client.post(f"{prefix}/detokenize", json={"tokens": one["tokens"]}).json() == {"text": "12+30="}
    back = client.post(f"{prefix}/detokenize", json={"tokens": [[5, 2], [6]], "skip_special_tokens": False})
    assert back.json() == {"text": ["1<eos>", "2"]}
    assert client.post(f"{prefix}/detokenize", json={"tokens": [5, 2]}).json() == {"text": "1"}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/tokenize", {"prompt": [1, 2]}, 400, "prompt"),
        (
            "/tokenize",
            {"messages": [{"content": "1"}], "prompt": "1"},
            400,
            "messages is not supported",
        ),
        ("/tokenize", {"prompt": "1", "model": "other"}, 404, "does not exist"),
        ("/tokenize", {"prompt": "1", "promt": "1"}, 400, "did you mean 'prompt'?"),
        ("/detokenize", {"tokens": "1"}, 400, "tokens"),
        ("/detokenize", {"tokens": [16]}, 400, "token ids are integers from 0 to 15"),
        ("/detokenize", {"tokens": [5], "model": "other"}, 404, "does not exist"),
    ],
)
def test_tokens_that_are_refused(client, path, body, status, said):
    answer = client.post(path, json=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_every_field_of_sglangs_is_known():
    protocol = pytest.importorskip("sglang.srt.entrypoints.openai.protocol")
    for theirs, ours in ((protocol.TokenizeRequest, TokenizeRequest), (protocol.DetokenizeRequest, DetokenizeRequest)):
        assert set(theirs.model_fields) <= {*ours.model_fields, *ours.unsupported}
