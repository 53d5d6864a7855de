"""What /metrics shows, read back with Prometheus' own parser."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from raylaunch import __version__
from raylaunch.config import ServeConfig
from raylaunch.engine.health import Condition, Health, RankHealth
from raylaunch.report import KeptWeights, Standing
from raylaunch.serve import metrics as module
from raylaunch.serve.metrics import Metrics, running_and_waiting
from tests.serve.fake_engine import FakeEngine, lost


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(engine: FakeEngine, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Metrics:
    made = Metrics(engine, ServeConfig(), clock)
    monkeypatch.setattr(made.watch, "_clock", clock)
    return made


@pytest.fixture
def client(metrics: Metrics, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(module, "Metrics", lambda *_: metrics)
    router, observed = module.build(engine, ServeConfig())
    assert observed is metrics
    app = FastAPI()
    app.include_router(router)
    return TestClient(app)


def scraped(client: TestClient) -> dict[tuple[str, ...], float]:
    """Values by name and labels: ``("raylaunch_rank_up", "rank=0")``."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_requests(client: TestClient, metrics: Metrics, clock: Clock) -> None:
    one, other = metrics.observe(), metrics.observe()
    one.started("generate", 5)
    other.started("chat", 7)
    clock.now += 0.2
    one.first_token()
    one.tokens(1)
    clock.now += 0.03
    one.tokens(3)
    assert metrics.in_flight == 2
    one.finished("length")
    one.finished("error")  # the first reason counts
    clock.now += 2
    other.finished("gone")
    assert metrics.in_flight == 0

    values = scraped(client)
    assert values["raylaunch_requests_total", "endpoint=generate", "finish=length"] == 1
    assert values["raylaunch_requests_total", "endpoint=chat", "finish=gone"] == 1
    assert ("raylaunch_requests_total", "endpoint=generate", "finish=error") not in values
    assert values["raylaunch_prompt_tokens_total",] == 12
    assert values["raylaunch_output_tokens_total",] == 4
    assert values["raylaunch_time_to_first_token_seconds_count",] == 1
    assert values["raylaunch_time_to_first_token_seconds_sum",] == pytest.approx(0.2)
    assert values["raylaunch_inter_token_seconds_count",] == 3  # three tokens in one chunk shared 30 ms
    assert values["raylaunch_inter_token_seconds_sum",] == pytest.approx(0.03)
    assert values["raylaunch_inter_token_seconds_bucket", "le=0.025"] == 3
    assert values["raylaunch_request_seconds_sum",] == pytest.approx(0.23 + 2.23)


def test_buckets_go_from_a_millisecond_to_a_minute(client: TestClient) -> None:
    bounds = [key[1] for key in scraped(client) if key[0] == "raylaunch_request_seconds_bucket"]
    assert (bounds[0], bounds[-2], bounds[-1]) == ("le=0.001", "le=60.0", "le=+Inf")


def test_a_first_chunk_without_a_word_about_it_counts_too(client: TestClient, metrics: Metrics, clock: Clock) -> None:
    one = metrics.observe()
    one.started("generate", 1)
    clock.now += 1
    one.tokens(2)
    one.tokens(0)
    values = scraped(client)
    assert values["raylaunch_time_to_first_token_seconds_sum",] == 1
    assert values["raylaunch_inter_token_seconds_count",] == 0


def test_a_request_that_never_started_changes_nothing(client: TestClient, metrics: Metrics) -> None:
    metrics.observe().finished("error")
    assert metrics.in_flight == 0
    assert not any(key[0] == "raylaunch_requests_total" for key in scraped(client))


def test_the_group(client: TestClient, engine: FakeEngine) -> None:
    engine.restarts, engine.continued = 1, 4
    engine.report.standby, engine.report.kept = Standing(2, 3 << 30), KeptWeights(1, 5 << 30)
    engine.report.shapes = (*engine.report.verdicts, "prefill 9")
    values = scraped(client)
    assert (values["raylaunch_standby_ranks",], values["raylaunch_standby_bytes",]) == (2, 3 << 30)
    assert values["raylaunch_kept_weights_bytes",] == 5 << 30
    verified = len(engine.report.verdicts)
    assert (values["raylaunch_shapes_verified",], values["raylaunch_shapes_left",]) == (verified, 1) != (0, 1)
    assert values["raylaunch_ready",] == 1
    assert values["raylaunch_condition", "condition=ready"] == 1
    assert values["raylaunch_condition", "condition=failed"] == 0
    assert values["raylaunch_restarts_total",] == values["raylaunch_restarts_left",] == 1
    assert values["raylaunch_requests_continued_total",] == 4
    assert (values["raylaunch_kv_tokens_used",], values["raylaunch_kv_tokens",]) == (64, 8192)
    assert values["raylaunch_rank_up", "rank=0"] == values["raylaunch_rank_up", "rank=1"] == 1
    assert values["raylaunch_rank_steps_total", "rank=1"] == 71
    assert values["raylaunch_rank_tokens_total", "rank=0"] == 12
    assert values["raylaunch_requests_limit",] == 256
    assert values["raylaunch_phase_seconds", "phase=CONNECT", "rank=1"] == pytest.approx(6)
    assert values["raylaunch_phase_elapsed_seconds", "phase=PLACE"] == pytest.approx(3)
    assert not any(key[:2] == ("raylaunch_phase_seconds", "phase=PLACE") for key in values)
    (info,) = [key for key in values if key[0] == "raylaunch_build_info"]
    assert {f"version={__version__}", "model=tiny-adder", "ranks=2", "engine=reference"} <= set(info)


def test_a_lost_group(client: TestClient, engine: FakeEngine) -> None:
    engine.fail(lost())
    engine.fail(lost())
    values = scraped(client)
    assert values["raylaunch_ready",] == 0
    assert values["raylaunch_condition", "condition=failed"] == 1
    assert values["raylaunch_losses_total", "fault=F07", "rank=1"] == 2
    assert ("raylaunch_kv_tokens_used",) not in values
    assert values["raylaunch_rank_up", "rank=0"] == values["raylaunch_rank_up", "rank=1"] == 0
    assert not any(key[0] == "raylaunch_rank_steps_total" for key in values)


def test_phases_follow_a_rebuild(client: TestClient, engine: FakeEngine) -> None:
    assert scraped(client)["raylaunch_phase_elapsed_seconds", "phase=VERIFY"] > 0
    engine.rebuild(steps=3)
    assert scraped(client)["raylaunch_phase_elapsed_seconds", "phase=VERIFY"] == 0


def test_ranks_are_asked_once_a_second_and_never_for_a_request(
    client: TestClient, engine: FakeEngine, metrics: Metrics, clock: Clock
) -> None:
    one = metrics.observe()
    one.started("generate", 1)
    one.tokens(1)
    one.finished("stop")
    assert engine.asked == 0
    for _ in range(5):
        scraped(client)
    assert engine.asked == 1
    clock.now += 1
    scraped(client)
    assert engine.asked == 2


def test_a_loss_is_shown_at_once_whenever_the_ranks_were_asked(client: TestClient, engine: FakeEngine) -> None:
    assert scraped(client)["raylaunch_ready",] == 1
    engine.fail(lost())
    values = scraped(client)
    assert (values["raylaunch_ready",], values["raylaunch_rank_up", "rank=1"]) == (0, 0)


def test_a_rank_that_does_not_answer_is_known_before_the_supervisor_knows(metrics: Metrics, engine: FakeEngine) -> None:
    engine.ranks = (RankHealth(1, False, "does not answer", {}),)
    assert metrics.watch.health().reason == "rank 1 does not answer"


def test_a_session_that_is_gone_is_not_an_error(client: TestClient, engine: FakeEngine) -> None:
    def health(ask_ranks: bool = True) -> Health:
        if ask_ranks:
            raise IndexError("list index out of range")
        return engine.now

    engine.health = health  # type: ignore[method-assign]
    assert scraped(client)["raylaunch_rank_up", "rank=0"] == 0


@pytest.mark.parametrize(
    ("ready", "counters", "requests", "in_flight", "expected"),
    [
        (True, {"running": 2, "waiting": 1}, 3, 3, (2, 1)),
        (True, {"running": 2, "waiting": 1}, 3, 5, (2, 3)),  # two are on their way
        (True, {"running": 2, "waiting": 0}, 0, 0, (2, 0)),  # they have just ended
        (True, {}, 1, 0, (0, 1)),
        (False, {"running": 2, "waiting": 1}, 0, 4, (0, 4)),  # held back until the group is rebuilt
    ],
)
def test_running_and_waiting(
    ready: bool, counters: dict[str, int], requests: int, in_flight: int, expected: tuple[int, int]
) -> None:
    health = Health(ready, Condition.READY, "", (RankHealth(0, True, "", counters),), 0, requests)
    assert running_and_waiting(health, in_flight) == expected


def test_open_metrics_for_those_who_ask_for_it(client: TestClient) -> None:
    response = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics.text_string_to_metric_families(response.text)}
    assert {"raylaunch_requests", "raylaunch_rank_steps", "raylaunch_build_info"} <= names


def test_every_application_has_its_own_registry(engine: FakeEngine) -> None:
    (_, one), (_, other) = (module.build(engine, ServeConfig()) for _ in range(2))
    one.observe().started("generate", 3)
    assert sample(one, "raylaunch_prompt_tokens_total") == 3
    assert sample(other, "raylaunch_prompt_tokens_total") == 0


def sample(metrics: Metrics, name: str) -> Any:
    return metrics.registry.get_sample_value(name)


def test_recent_figures(metrics: Metrics, clock: Clock) -> None:
    assert (metrics.recent.tokens_per_second(), metrics.recent.first_token_p50()) == (0, None)
    for wait in (0.1, 0.3, 0.2):
        one = metrics.observe()
        one.started("generate", 1)
        clock.now += wait
        one.tokens(10)
    clock.now += 1
    assert metrics.recent.tokens_per_second() == 30 / 5
    assert metrics.recent.first_token_p50() == pytest.approx(0.2)
    clock.now += 60
    assert (metrics.recent.tokens_per_second(), metrics.recent.first_token_p50()) == (0, None)
