"""Requests made up from the server's own description: no 500, no hang, and ranks that are as well as before."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ANSWER_S = 60
seen: Counter[str] = Counter()

schema = schemathesis.pytest.from_fixture("description")


@pytest.fixture(scope="module")
def description(live):
    """The server's description, and the server's state when all is over."""
    yield schemathesis.openapi.from_url(f"{live.url}/openapi.json")


def call(case):
    answer = case.call(timeout=ANSWER_S)
    seen[f"{case.method} {case.path} {answer.status_code}"] += 1
    case.validate_response(answer, checks=CHECKS)


MADE_UP = {"deadline": None, "suppress_health_check": list(HealthCheck), "phases": [Phase.explicit, Phase.generate]}


@schema.parametrize()
@settings(max_examples=15, **MADE_UP)
def test_a_few_requests(case):
    call(case)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@schema.parametrize()
@settings(max_examples=400, **MADE_UP)
def test_many_requests(case):
    call(case)


def test_the_ranks_are_unharmed(live):
    """Runs last in this module."""
    answer = httpx.post(f"{live.url}/generate", json={"text": "12+30=", "sampling_params": {"temperature": 0}})
    assert answer.json()["text"] == "42"
    assert live.running() == 0
    health = live.engine.health()
    assert health.ready
    assert (health.requests, live.engine.restarts, live.engine.failures) == (0, 0, ())
    print(sum(seen.values()), "requests:", *sorted(seen.items()), sep="\n")
