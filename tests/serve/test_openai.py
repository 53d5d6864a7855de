"""OpenAI's endpoints: shapes of requests and answers."""

from __future__ import annotations

import pytest

from tests.serve.conftest import events_of

SUM = [{"role": "user", "content": "12+30="}]


def test_completion(client, engine):
    answer = client.post("/v1/completions", json={"model": "tiny-adder", "prompt": "12+30="}).json()
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 0
    assert answer == {
        "object": "text_completion",
        "model": "tiny-adder",
        "choices": [{"index": 0, "text": "42", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 6, "completion_tokens": 2, "total_tokens": 8},
    }
    params = engine.asked_for[0][1]
    assert (params.max_new_tokens, params.temperature) == (16, 1.0)


def test_prompts_and_choices_are_numbered_in_order(client, engine):
    ids = engine.tokenizer("1+1=")["input_ids"]
    answer = client.post("/v1/completions", json={"prompt": [ids, ids + ids], "n": 2, "seed": -1}).json()
    assert [choice["text"] for choice in answer["choices"]] == ["2", "2", "+", "+"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"] == {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16}
    assert [params.seed for _, params in engine.asked_for] == [(1 << 63) - 1, 0] * 2


def test_completion_logprobs(client):
    answer = client.post("/v1/completions", json={"prompt": "12+30=", "logprobs": 1}).json()
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["4", "2"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"4": -0.5}, {"2": -0.5}],
        "text_offset": [0, 1],
    }


def test_streamed_completion_with_usage(client):
    asked = {"prompt": "12+30=", "stream": True, "stream_options": {"include_usage": True}, "logprobs": 0}
    events = events_of(client.post("/v1/completions", json=asked).text)
    assert [event["choices"][0]["text"] for event in events[:-1]] == ["4", "2", ""]
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None, None, "stop"]
    assert [event["choices"][0]["logprobs"]["text_offset"] for event in events[:2]] == [[0], [1]]
    assert events[-1]["choices"] == []
    assert [event["usage"] for event in events[:-1]] == [None] * 3
    assert events[-1]["usage"] == {"prompt_tokens": 6, "completion_tokens": 2, "total_tokens": 8}


def test_chat(client, engine):
    answer = client.post("/v1/chat/completions", json={"model": "tiny-adder", "messages": SUM}).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "42", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert engine.asked_for[0][1].max_new_tokens == 1024


@pytest.mark.parametrize(
    ("more", "tokens"),
    [({"max_tokens": 3}, 3), ({"max_completion_tokens": 5}, 5), ({"max_tokens": 5, "max_completion_tokens": 5}, 5)],
)
def test_chat_token_limits(client, engine, more, tokens):
    client.post("/v1/chat/completions", json={"messages": SUM, **more})
    assert engine.asked_for[0][1].max_new_tokens == tokens


def test_chat_takes_text_in_parts(client):
    parts = [{"type": "text", "text": "12+30="}]
    answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]}).json()
    assert answer["choices"][0]["message"]["content"] == "42"


def test_chat_logprobs(client):
    asked = {"messages": SUM, "logprobs": True, "top_logprobs": 1}
    entries = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["logprobs"]["content"]
    four = {"token": "4", "logprob": -0.5, "bytes": [52]}
    assert entries[0] == {**four, "top_logprobs": [four]}
    assert len(entries) == 2


def test_streamed_chat(client):
    events = events_of(client.post("/v1/chat/completions", json={"messages": SUM, "stream": True}).text)
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert [event["choices"][0]["delta"] for event in events] == [
        {"role": "assistant", "content": ""},
        {"content": "4"},
        {"content": "2"},
        {},
    ]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_chat_without_a_template(client_with, engine, monkeypatch):
    monkeypatch.setattr(engine.tokenizer, "chat_template", None)
    answer = client_with(chat_template=None).post("/v1/chat/completions", json={"messages": SUM})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "no_chat_template"


def test_template_from_a_file(client_with, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[0].content }}")
    answer = client_with(chat_template=str(file)).post("/v1/chat/completions", json={"messages": SUM}).json()
    assert answer["choices"][0]["message"]["content"] == "42"


def test_template_variables(client_with):
    client = client_with(chat_template="{{ messages[0].content }}{% if more %}+1={% endif %}")
    asked = {"messages": [{"role": "user", "content": "1"}], "chat_template_kwargs": {"more": True}}
    assert client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"] == "2"
    asked["chat_template_kwargs"] = {"chat_template": "{{ 7 * 7 }}"}
    assert client.post("/v1/chat/completions", json=asked).status_code == 400


def test_a_template_that_refuses(client_with):
    client = client_with(chat_template="{{ raise_exception('only users may speak') }}")
    answer = client.post("/v1/chat/completions", json={"messages": SUM})
    assert answer.status_code == 400
    assert "only users may speak" in answer.json()["error"]["message"]


def test_models(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny-adder"
    assert model["max_model_len"] == 2048
    assert client.get("/v1/models/tiny-adder").json() == model
    assert client.get("/v1/models/a/b").status_code == 404


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_unknown_model(client, engine, path):
    asked = {"messages": SUM} if "chat" in path else {"prompt": "1"}
    answer = client.post(path, json={"model": "gpt-4", **asked})
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "the model 'gpt-4' does not exist; this server has 'tiny-adder'",
        "type": "not_found_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert engine.asked_for == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": {}}, "prompt"),
        ("/v1/completions", {"prompt": "1", "max_tokens": "9"}, "max_tokens"),
        ("/v1/completions", {"prompt": "1", "max_tokens": 1.5}, "max_tokens"),
        ("/v1/completions", {"prompt": "1", "stream": "yes"}, "stream"),
        ("/v1/completions", {"prompt": "1", "temperature": -1}, "temperature"),
        ("/v1/completions", {"prompt": "1", "top_p": 0}, "top_p"),
        ("/v1/completions", {"prompt": "1", "logprobs": 21}, "logprobs"),
        ("/v1/completions", {"prompt": "1", "echo": "yes"}, "echo"),
        ("/v1/completions", {"prompt": "1", "best_of": 2}, "best_of"),
        ("/v1/completions", {"prompt": "1", "frequency_penalty": 0.5}, "frequency_penalty"),
        ("/v1/completions", {"prompt": "1", "stream_options": {}}, "stream_options"),
        ("/v1/completions", {"prompt": "1", "stop": [1]}, "stop.0"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"content": "1"}]}, "messages.0.role"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 1}]}, "messages.0.content"),
        ("/v1/chat/completions", {"messages": SUM, "top_logprobs": 2}, "top_logprobs"),
        ("/v1/chat/completions", {"messages": SUM, "tools": [{"type": "function"}]}, "tools.0.function"),
        ("/v1/chat/completions", {"messages": SUM, "response_format": {"type": "json_object"}}, "response_format"),
        ("/v1/chat/completions", {"messages": SUM, "max_tokens": 4000}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": ""}]}, "messages"),
    ],
)
def test_refused_before_the_engine(client, engine, path, body, param):
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert engine.asked_for == []
