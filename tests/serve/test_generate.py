"""SGLang's interface: shapes of requests and answers."""

from __future__ import annotations

import pytest

from tests.serve.conftest import events_of

GREEDY = {"temperature": 0}


def test_one_text(client, engine):
    answer = client.post("/generate", json={"text": "12+30=", "sampling_params": GREEDY, "rid": "mine"}).json()
    latency = answer["meta_info"].pop("e2e_latency")
    assert answer == {
        "text": "42",
        "output_ids": engine.tokenizer("42")["input_ids"],
        "meta_info": {
            "id": "mine",
            "finish_reason": {"type": "stop", "matched": None},
            "prompt_tokens": 6,
            "completion_tokens": 2,
            "cached_tokens": 0,
        },
    }
    assert latency > 0


def test_defaults_are_sglangs(client, engine):
    client.post("/generate", json={"text": "1+1="})
    client.post("/generate", json={"text": "1+1=", "sampling_params": {"max_new_tokens": None, "top_k": None}})
    for _, params in engine.asked_for:
        assert (params.max_new_tokens, params.temperature, params.top_k, params.seed) == (128, 1.0, 0, None)


def test_every_sampling_parameter_arrives(client, engine):
    given = {
        "max_new_tokens": 7,
        "temperature": 1,
        "top_k": -1,
        "top_p": 0.5,
        "stop": "x",
        "stop_token_ids": [3],
        "ignore_eos": True,
        "sampling_seed": 5,
        "logit_bias": {"3": -1.5},
    }
    client.post("/generate", json={"text": "1+1=", "sampling_params": given, "return_logprob": True})
    params = engine.asked_for[0][1]
    assert params.model_dump() == {
        "max_new_tokens": 7,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 0.5,
        "seed": 5,
        "stop": ("x",),
        "stop_token_ids": (3,),
        "ignore_eos": True,
        "logprobs": 0,
        "prompt_logprobs": None,
        "logit_bias": {3: -1.5},
        "extra": {},
    }


def test_length(client):
    answer = client.post("/generate", json={"text": "12+30=", "sampling_params": {"max_new_tokens": 1}}).json()
    assert answer["text"] == "4"
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 1}


@pytest.mark.parametrize("key", ["text", "input_ids"])
def test_a_batch_is_answered_by_a_list(client, engine, key):
    texts = ["12+30=", "1+1="]
    prompts = texts if key == "text" else [engine.tokenizer(text)["input_ids"] for text in texts]
    answers = client.post("/generate", json={key: prompts, "rid": ["a", "b"], "sampling_params": [GREEDY, {}]}).json()
    assert [answer["text"] for answer in answers] == ["42", "2"]
    assert [answer["meta_info"]["id"] for answer in answers] == ["a", "b"]
    assert [params.temperature for _, params in engine.asked_for] == [0.0, 1.0]


def test_a_batch_of_one_is_a_list(client):
    assert [one["text"] for one in client.post("/generate", json={"text": ["1+1="]}).json()] == ["2"]


def test_several_choices_draw_by_themselves(client, engine):
    answers = client.post("/generate", json={"text": "1+1=", "sampling_params": {"n": 3, "seed": 7}}).json()
    assert [answer["text"] for answer in answers] == ["2"] * 3
    assert [params.seed for _, params in engine.asked_for] == [7, 8, 9]
    assert len({answer["meta_info"]["id"] for answer in answers}) == 3


def test_logprobs(client, engine):
    asked = {"text": "1+1=", "return_logprob": True, "top_logprobs_num": 2, "return_text_in_logprobs": True}
    answer = client.post("/generate", json=asked).json()
    (token,) = answer["output_ids"]
    assert answer["meta_info"]["output_token_logprobs"] == [[-0.5, token, "2"]]
    assert answer["meta_info"]["output_top_logprobs"] == [[[-0.5, token, "2"], [-1.5, 1, engine.tokenizer.decode([1])]]]


def test_streamed_text_grows(client):
    answer = client.post("/generate", json={"text": "12+30=", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert [event["text"] for event in events] == ["4", "42", "42"]
    assert [event["meta_info"]["completion_tokens"] for event in events] == [1, 2, 2]
    assert [event["meta_info"]["finish_reason"] for event in events[:-1]] == [None, None]
    assert events[-1]["meta_info"]["finish_reason"]["type"] == "stop"


def test_a_streams_log_probabilities_are_made_text_once(client, engine, monkeypatch):
    """Every event has those of all before it."""
    decoded, decode = [], engine.tokenizer.decode
    monkeypatch.setattr(engine.tokenizer, "decode", lambda ids, **more: decoded.append(ids) or decode(ids, **more))
    more = {"return_logprob": True, "top_logprobs_num": 2, "return_text_in_logprobs": True, "stream": True}
    events = events_of(client.post("/generate", json={"text": "12345678+1=", **more}).text)
    kept = events[-1]["meta_info"]["output_token_logprobs"]
    assert [token for _, token, _ in kept] == events[-1]["output_ids"]
    assert [len(event["meta_info"]["output_top_logprobs"]) for event in events] == [*range(1, len(kept) + 1), len(kept)]
    assert len(decoded) <= 4 * len(kept) + 1, "the prompt, and of each token its chunk, itself and two beside it"


def test_streamed_batch_says_which(client):
    events = events_of(client.post("/generate", json={"text": ["12+30=", "1+1="], "stream": True}).text)
    last = {event["index"]: event["text"] for event in events}
    assert last == {0: "42", 1: "2"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "give either text or input_ids"),
        ({"text": "1", "input_ids": [1]}, "give either text or input_ids"),
        ({"text": ""}, "the prompt is empty"),
        ({"text": []}, "text: is empty"),
        ({"text": ["1", 2]}, "text: item 1 is 2"),
        ({"text": [1, 2]}, "token ids go into input_ids"),
        ({"input_ids": "1"}, "must be token ids"),
        ({"input_ids": [[1], "1"]}, "item 1 is '1'"),
        ({"input_ids": [1, True]}, "token 1 is True"),
        ({"input_ids": [1, 999]}, "token 1 of the prompt is 999: token ids are integers from 0 to"),
        ({"input_ids": [-1]}, "token 0 of the prompt is -1"),
        ({"text": "1+1=", "sampling_params": {"max_new_tokens": 1 << 20}}, "together at most 2048"),
        ({"text": "1" * 5000}, "the prompt has 5000 tokens"),
        ({"text": "1", "sampling_params": {"max_new_tokens": 0}}, "max_new_tokens = 0: input should be greater"),
        ({"text": "1", "sampling_params": {"temperature": "hot"}}, "sampling_params.temperature = 'hot'"),
        ({"text": "1", "sampling_params": {"regex": "a+"}}, "sampling_params.regex = 'a+' is not supported"),
        ({"text": "1", "sampling_params": {"n": 0}}, "sampling_params.n = 0"),
        ({"text": "1", "sampling_params": {"stop": [""]}}, "sampling_params.stop"),
        ({"text": "1", "sampling_params": [{}, {}]}, "a list of 2 for 1 prompts"),
        ({"text": ["1", "1"], "rid": ["a", "a"]}, "rid must be"),
        ({"text": "1", "image_data": "x.png"}, "image_data = 'x.png' is not supported"),
        ({"text": ["1"] * 20, "sampling_params": {"n": 128}}, "2560 choices are asked for at once; at most 1056"),
    ],
)
def test_refused_before_the_engine(client, engine, body, message):
    answer = client.post("/generate", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert engine.asked_for == []


def test_what_changes_nothing_is_accepted(client):
    """SGLang's own benchmark sends these."""
    more = {"lora_path": None, "return_routed_experts": False, "logprob_start_len": -1, "return_logprob": False}
    assert client.post("/generate", json={"text": "1+1=", **more}).status_code == 200


def test_what_clients_ask_beside(client):
    assert client.get("/model_info").json() == client.get("/get_model_info").json()
    assert client.get("/model_info").json()["is_generation"] is True
    info = client.get("/server_info").json()
    assert info["tp_size"] == 2
    assert info["internal_states"]
    assert client.post("/flush_cache").status_code == client.get("/flush_cache").status_code == 200
    assert client.post("/abort_request", json={"rid": "unknown"}).status_code == 200
