"""Prometheus metrics of the HTTP application and of the group behind it, at ``/metrics``."""

from __future__ import annotations

import collections
import math
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from statistics import median_high

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from raylaunch import __version__
from raylaunch.config import ServeConfig
from raylaunch.engine import EngineBase
from raylaunch.engine.health import Condition, Health
from raylaunch.engine.replicas import replicas_of
from raylaunch.protocol import Phase
from raylaunch.serve.limits import max_concurrent
from raylaunch.serve.watch import GroupWatch
from raylaunch.tracing.spans import of_request

METRICS, OWN = "/metrics", "/raylaunch/metrics"
"""The second is the same, at a path that no engine has metrics of its own at."""
BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
REPLICA = ("replica",)
RATE_WINDOW_S = 5
FIRST_TOKEN_WINDOW_S = 60.0
REMEMBERED_FIRST_TOKENS = 1000


def build(
    engine: EngineBase, settings: ServeConfig, paths: Sequence[str] = (METRICS, OWN)
) -> tuple[APIRouter, Metrics]:
    """Routes that answer ``paths``, and the metrics behind them, whose :meth:`Metrics.observe` the requests tell."""
    metrics = Metrics(engine, settings)
    router = APIRouter()

    async def scrape(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        body = await metrics.watch.run(lambda: encode(metrics.registry))
        return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})

    for path in paths:
        router.add_api_route(path, scrape, include_in_schema=False)
    return router, metrics


class Metrics:
    """Counts requests. Its methods, and those of the requests, are called on the event loop's thread only.

    Attributes:
        registry: what ``/metrics`` shows; every application has its own.
        watch: the group's health, for the metrics and the status page alike.
        recent: metrics of the last seconds, for people.
        in_flight: requests that the application is answering, or holding back while the group is rebuilt.
    """

    def __init__(self, engine: EngineBase, settings: ServeConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.registry = CollectorRegistry()
        self.watch = GroupWatch(engine)
        self.recent = Recent(clock)
        self.in_flight = 0
        self.requests = Counter(
            "raylaunch_requests", "Requests that ended, by how.", ("endpoint", "finish"), registry=self.registry
        )
        self.responses = Counter(
            "raylaunch_responses", "Answers by path and HTTP status.", ("path", "code"), registry=self.registry
        )
        self.prompt_tokens = Counter("raylaunch_prompt_tokens", "Tokens of prompts taken in.", registry=self.registry)
        self.output_tokens = Counter("raylaunch_output_tokens", "Tokens given to clients.", registry=self.registry)
        self.first_token_seconds = self._histogram(
            "time_to_first_token", "From the start of a request to its first token."
        )
        self.inter_token_seconds = self._histogram("inter_token", "Between two tokens of one request.")
        self.request_seconds = self._histogram("request", "From the start of a request to its end.")
        limit = Gauge("raylaunch_requests_limit", "Requests answered at the same time at most.", registry=self.registry)
        most = max_concurrent(engine.config, settings)
        limit.set(math.inf if most is None else most)
        self.registry.register(GroupCollector(engine, self))

    def observe(self) -> RequestMetrics:
        """The observer of one request."""
        return RequestMetrics(self)

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(f"raylaunch_{name}_seconds", what, buckets=BUCKETS_S, registry=self.registry)


class RequestMetrics:
    """One request: a :class:`raylaunch.serve.running.Observer`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._endpoint = ""
        self._began = 0.0
        self._last: float | None = None
        self._first_chunk = True
        self._running = False
        self._facts, self._prompt_tokens, self._output_tokens = of_request.get(), 0, 0

    def started(self, endpoint: str, prompt_tokens: int) -> None:
        """Begins. ``endpoint`` is one of the application's few names, never what a client sent."""
        self._endpoint, self._began, self._running = endpoint, self._metrics.clock(), True
        self._metrics.in_flight += 1
        self._metrics.prompt_tokens.inc(prompt_tokens)
        self._prompt_tokens = prompt_tokens

    def first_token(self) -> None:
        """The first token has come. Counts once."""
        if self._last is None:
            self._last = self._metrics.clock()
            self._metrics.first_token_seconds.observe(self._last - self._began)
            self._metrics.recent.first_token(self._last - self._began)

    def tokens(self, count: int) -> None:
        """Tokens have come, the first ones included."""
        if count <= 0:
            return
        metrics = self._metrics
        self.first_token()
        metrics.output_tokens.inc(count)
        metrics.recent.tokens(count)
        if self._facts is not None:
            self._output_tokens += count
            self._facts.output(self, self._prompt_tokens, self._output_tokens)
        now = metrics.clock()
        if not self._first_chunk and self._last is not None:
            for _ in range(count):
                metrics.inter_token_seconds.observe((now - self._last) / count)
        self._last, self._first_chunk = now, False

    def finished(self, reason: str) -> None:
        """The request has ended: one of the few reasons that ``Observer.finished`` names. Counts once."""
        if self._running:
            self._running = False
            if self._facts is not None:
                self._facts.output(self, self._prompt_tokens, self._output_tokens)
                self._facts.reasons.append(reason)
            self._metrics.in_flight -= 1
            self._metrics.requests.labels(self._endpoint, reason).inc()
            self._metrics.request_seconds.observe(self._metrics.clock() - self._began)


class Recent:
    """Metrics of the last seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: deque[list[int]] = deque(maxlen=RATE_WINDOW_S + 1)
        self._first_tokens: deque[tuple[float, float]] = deque(maxlen=REMEMBERED_FIRST_TOKENS)

    def tokens(self, count: int) -> None:
        second = int(self._clock())
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += count
        else:
            self._seconds.append([second, count])

    def first_token(self, seconds: float) -> None:
        self._first_tokens.append((self._clock(), seconds))

    def tokens_per_second(self) -> float:
        """Output tokens per second, over the last ``RATE_WINDOW_S`` whole seconds."""
        now = int(self._clock())
        return sum(count for second, count in self._seconds if now - RATE_WINDOW_S <= second < now) / RATE_WINDOW_S

    def first_token_p50(self) -> float | None:
        """Median seconds to the first token over the last minute; None without a request."""
        since = self._clock() - FIRST_TOKEN_WINDOW_S
        values = [seconds for when, seconds in self._first_tokens if when >= since]
        return median_high(values) if values else None


class GroupCollector(Collector):
    """What the group says of itself, collected when it is asked for."""

    def __init__(self, engine: EngineBase, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics
        self._engines = replicas_of(engine)
        self._label = REPLICA if len(self._engines) > 1 else ()
        self._phases_of: object = None
        self._phases: tuple[Metric, ...] = ()

    def collect(self) -> Iterator[Metric]:
        health = self._metrics.watch.health()
        running, waiting = running_and_waiting(health, self._metrics.in_flight)
        yield _gauge("ready", "Whether a request sent now would be served.", int(health.ready))
        conditions = GaugeMetricFamily("raylaunch_condition", "1 for what it is in, else 0.", labels=("condition",))
        for one in Condition:
            conditions.add_metric((one.value,), int(health.condition is one))
        yield conditions
        yield _gauge("requests_running", "Requests that the ranks are answering.", running)
        yield _gauge("requests_waiting", "Requests that wait for the ranks.", waiting)
        yield CounterMetricFamily(
            "raylaunch_restarts", "Times the group was rebuilt.", value=float(self._engine.restarts)
        )
        yield _gauge("restarts_left", "Times a lost group would still be rebuilt now.", health.restarts_left)
        yield CounterMetricFamily(
            "raylaunch_requests_continued",
            "Times that a request went on in another group than the one that was lost.",
            value=float(self._engine.continued),
        )
        yield from self._of_groups(health.replicas or (health,))
        if health.replicas:
            yield from self._of_replicas(health.replicas)
        yield from self._of_ranks(health.replicas or (health,))
        yield from self._of_phases()
        yield from self._of_spares()
        yield from self._of_shapes()
        yield self._build_info()

    def _of_replicas(self, healths: Sequence[Health]) -> Iterator[Metric]:
        ready = GaugeMetricFamily("raylaunch_replica_ready", "Whether this group answers requests.", labels=REPLICA)
        requests = GaugeMetricFamily("raylaunch_replica_requests", "Requests that are at this group.", labels=REPLICA)
        restarts = CounterMetricFamily("raylaunch_replica_restarts", "Times it was rebuilt.", labels=REPLICA)
        for number, (health, engine) in enumerate(zip(healths, self._engines, strict=True)):
            ready.add_metric((str(number),), int(health.ready))
            requests.add_metric((str(number),), health.requests)
            restarts.add_metric((str(number),), engine.restarts)
        yield from (ready, requests, restarts)

    def _of_groups(self, healths: Sequence[Health]) -> Iterator[Metric]:
        labels = (*self._label, "fault", "rank")
        losses = CounterMetricFamily("raylaunch_losses", "Times a group that served was lost, by cause.", labels=labels)
        holds = GaugeMetricFamily("raylaunch_kv_tokens", "Tokens that its KV cache holds.", labels=self._label)
        used = GaugeMetricFamily("raylaunch_kv_tokens_used", "Of them in use.", labels=self._label)
        for number, (health, engine) in enumerate(zip(healths, self._engines, strict=True)):
            causes = [(error.code or "", "" if error.rank is None else str(error.rank)) for _, error in engine.failures]
            for cause, count in collections.Counter(causes).items():
                losses.add_metric((*self._value(number), *cause), count)
            holds.add_metric(self._value(number), engine.kv_tokens)
            for counters in [one.counters for one in health.ranks if one.rank == 0 and "kv_used" in one.counters]:
                used.add_metric(self._value(number), counters["kv_used"])
        yield from (losses, holds, used)

    def _of_ranks(self, healths: Sequence[Health]) -> Iterator[Metric]:
        labels = (*self._label, "rank")
        up = GaugeMetricFamily("raylaunch_rank_up", "Whether a rank answers health questions.", labels=labels)
        steps = CounterMetricFamily("raylaunch_rank_steps", "Forward passes of a rank.", labels=labels)
        tokens = CounterMetricFamily("raylaunch_rank_tokens", "Output tokens that a rank sampled.", labels=labels)
        for number, health in enumerate(healths):
            answers = {rank.rank: rank for rank in health.ranks}
            for rank in range(self._engine.config.parallel.tensor_parallel_size):
                values, answer = (*self._value(number), str(rank)), answers.get(rank)
                up.add_metric(values, int(answer is not None and answer.answers))
                # A rank that does not answer has no metrics: a zero would look like a restart.
                if answer is not None and answer.counters:
                    steps.add_metric(values, answer.counters.get("steps", 0))
                    tokens.add_metric(values, answer.counters.get("tokens", 0))
        yield from (up, steps, tokens)

    def _of_spares(self) -> Iterator[Metric]:
        ranks = GaugeMetricFamily("raylaunch_standby_ranks", "Ranks that wait to be adopted.", labels=self._label)
        nbytes = GaugeMetricFamily("raylaunch_standby_bytes", "Memory that they have.", labels=self._label)
        for number, engine in enumerate(self._engines):
            ranks.add_metric(self._value(number), engine.report.standby.ranks)
            nbytes.add_metric(self._value(number), engine.report.standby.nbytes)
        kept = GaugeMetricFamily("raylaunch_kept_weights_bytes", "Weights kept in memory.", labels=self._label)
        for number, engine in enumerate(self._engines):
            kept.add_metric(self._value(number), engine.report.kept.nbytes)
        yield from (ranks, nbytes, kept)

    def _of_shapes(self) -> Iterator[Metric]:
        done = GaugeMetricFamily("raylaunch_shapes_verified", "Shapes that were replayed rightly.", labels=self._label)
        left = GaugeMetricFamily("raylaunch_shapes_left", "Shapes still to be verified.", labels=self._label)
        for number, engine in enumerate(self._engines):
            done.add_metric(self._value(number), len(engine.report.verdicts))
            left.add_metric(self._value(number), len(engine.report.unverified))
        yield from (done, left)

    def _of_phases(self) -> tuple[Metric, ...]:
        reports = [engine.report for engine in self._engines]
        state = [(id(one), one.started, len(one.steps), len(one.driver)) for one in reports]
        if state != self._phases_of:
            busy = GaugeMetricFamily(
                "raylaunch_phase_seconds", "Seconds that a rank worked in a phase of the launch, without waits.",
                labels=(*self._label, "phase", "rank"),
            )  # fmt: skip
            elapsed = GaugeMetricFamily(
                "raylaunch_phase_elapsed_seconds", "Seconds that a phase of the launch took.",
                labels=(*self._label, "phase"),
            )  # fmt: skip
            for number, phase in product(range(len(reports)), Phase):
                report, values = reports[number], (*self._value(number), phase.name)
                if phase is Phase.SERVE:
                    continue
                elapsed.add_metric(values, report.elapsed(phase))
                if phase is not Phase.PLACE:  # the driver's own work: no rank exists yet
                    for place in report.places:
                        busy.add_metric((*values, str(place.rank)), report.busy(place.rank, phase))
            self._phases, self._phases_of = (busy, elapsed), state
        return self._phases

    def _value(self, number: int) -> tuple[str, ...]:
        return (str(number),) if self._label else ()

    def _build_info(self) -> Metric:
        config = self._engine.config
        labels = {
            "version": __version__,
            "python": platform.python_version(),
            "ray": installed("ray"),
            "torch": installed("torch"),
            "model": self._engine.model_name,
            "engine": config.engine.kind,
            "ranks": str(config.parallel.tensor_parallel_size),
        }
        info = GaugeMetricFamily("raylaunch_build_info", "What runs here; always 1.", labels=tuple(labels))
        info.add_metric(tuple(labels.values()), 1)
        return info


def running_and_waiting(health: Health, in_flight: int) -> tuple[int, int]:
    """Requests that the ranks answer, and those that wait: in the ranks' queue, on the way, or for a rebuild."""
    parts = [one for one in health.replicas or (health,) if one.ready]
    running = sum(rank.counters.get("running", 0) for one in parts for rank in one.ranks if rank.rank == 0)
    return running, max(0, max(health.requests, in_flight) - running)


def installed(package: str) -> str:
    """Version of an installed package, or ""."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"raylaunch_{name}", what, value=value)
