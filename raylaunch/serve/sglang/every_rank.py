"""SGLang's metrics of ranks on other nodes, which can leave none in the driver's folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, make_asgi_app
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from starlette.types import ASGIApp, Receive, Scope, Send


class OfEveryRank:
    """SGLang's ``/metrics`` with what ranks keep; they are asked once per scrape.

    Args:
        kept: asks them; answers within seconds.
        app: SGLang's own, which answers everything else, and where no rank keeps any.
    """

    def __init__(self, kept: Callable[[], Sequence[Metric]], app: ASGIApp) -> None:
        self.kept, self.app = kept, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, asked = self.app, scope["type"] == "http" and scope["path"].startswith("/metrics")
        if asked and (kept := await asyncio.to_thread(self.kept)):
            registry = CollectorRegistry()
            registry.register(Joined(MultiProcessCollector(CollectorRegistry()), kept))
            app = make_asgi_app(registry)
        await app(scope, receive, send)


@dataclass(eq=False)
class Joined(Collector):
    """The metrics of this node's processes and those that ranks keep, each name once."""

    here: Collector
    kept: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return joined((*self.here.collect(), *self.kept))


def joined(metrics: Iterable[Metric]) -> list[Metric]:
    """Metrics of several processes as one process would have them: what is counted under the same labels is added up,
    of gauges the largest is taken."""
    found, samples = dict[str, Metric](), dict[str, dict[tuple[str, ...], Sample]]()
    for metric in metrics:
        found.setdefault(metric.name, metric)
        same = samples.setdefault(metric.name, {})
        for one in metric.samples:
            key = (one.name, *(f"{name}={value}" for name, value in sorted(one.labels.items())))
            if key in same:
                values = (same[key].value, one.value)
                one = one._replace(value=max(values) if metric.type == "gauge" else sum(values))
            same[key] = one
    for name, metric in found.items():
        metric.samples = list(samples[name].values())
    return list(found.values())
