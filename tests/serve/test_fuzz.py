"""Requests made up from the server's own description: no 500, no hang, and ranks that are as well as before."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from raylaunch.config import ServeConfig
from raylaunch.serve import build_app
from tests.serve.answering_engine import AnsweringEngine

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ANSWER_S = 60
DESCRIPTION = schemathesis.openapi.from_dict(build_app(AnsweringEngine(), ServeConfig()).openapi())
OPERATIONS = {found.ok().label: found.ok() for found in DESCRIPTION.get_all_operations()}
DESCRIBED = {
    "POST /generate": ("text",),
    "POST /v1/completions": ("prompt",),
    "POST /v1/chat/completions": ("messages",),
}
ASKING = tuple(DESCRIBED)
seen: Counter[str] = Counter()


SOUND = {"text": "12+30=", "prompt": ["12+30=", "1+1="], "messages": [{"role": "user", "content": "7+8="}]}


def fuzz(live, operation, mode, examples, sound=False):
    """Sends made-up requests that fit the description, or do not, and checks each answer.

    With ``sound`` they have a prompt that the model knows, so that what is made up beside it reaches the ranks.
    """

    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
        database=None,
    )
    @given(case=OPERATIONS[operation].as_strategy(generation_mode=mode))
    def send(case):
        if sound and isinstance(case.body, dict):
            case.body = sounder(operation, case.body)
        answer = case.call(base_url=live.url, timeout=ANSWER_S)
        seen[f"{operation} {'sound' if sound else mode.value} {answer.status_code}"] += 1
        case.validate_response(answer, checks=CHECKS)

    send()


def sounder(operation, body):
    """The body with a prompt that the model knows, and few tokens to generate: 128 choices may be asked for."""
    kept = {key: value for key, value in body.items() if key not in ("model", "input_ids", "max_completion_tokens")}
    kept |= {key: value for key, value in SOUND.items() if key in DESCRIBED[operation]}
    if operation != "POST /generate":
        return kept | {"max_tokens": 8}
    given = kept.get("sampling_params")
    return kept | {"sampling_params": {**(given if isinstance(given, dict) else {}), "max_new_tokens": 8}}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_few_requests(live, operation):
    modes = list(GenerationMode) if operation in ASKING else [GenerationMode.POSITIVE]
    for mode in modes:
        fuzz(live, operation, mode, 10)
    if operation in ASKING:
        fuzz(live, operation, GenerationMode.POSITIVE, 10, sound=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("operation", [*ASKING, "POST /abort_request"])
def test_many_requests(live, operation, mode):
    fuzz(live, operation, mode, 300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("operation", ASKING)
def test_many_requests_with_a_prompt(live, operation):
    fuzz(live, operation, GenerationMode.POSITIVE, 300, sound=True)


def test_the_ranks_are_unharmed(live):
    """Runs last in this module."""
    answer = httpx.post(f"{live.url}/generate", json={"text": "12+30=", "sampling_params": {"temperature": 0}})
    assert answer.json()["text"] == "42"
    assert live.running() == 0
    health = live.engine.health()
    assert health.ready
    assert (health.requests, live.engine.restarts, live.engine.failures) == (0, 0, ())
    print(sum(seen.values()), "requests:", *(f"{what}: {count}" for what, count in sorted(seen.items())), sep="\n")
