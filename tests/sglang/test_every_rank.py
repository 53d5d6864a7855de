"""SGLang's metrics of ranks on other nodes, in one scrape with the driver's own."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from raylaunch.serve.sglang.every_rank import OfEveryRank, joined


def kept(rank: int) -> list[Metric]:
    """What a rank keeps: a counter of its own, and others that all ranks have."""
    registry = CollectorRegistry()
    Counter("sglang:own", "Of one.", ("tp_rank",), registry=registry).labels(str(rank)).inc(rank + 1)
    Counter("sglang:steps", "Of each.", registry=registry).inc(10)
    Gauge("sglang:longest", "Of each.", registry=registry).set(rank)
    Histogram("sglang:latency", "Of each.", buckets=(1.0,), registry=registry).observe(0.5 + rank)
    return list(registry.collect())


def values(families: list[Metric]) -> dict[str, float]:
    names = ("le", "tp_rank")
    return {
        one.name + "".join(f"[{one.labels[name]}]" for name in names if name in one.labels): one.value
        for family in families
        for one in family.samples
        if not one.name.endswith("_created")
    }


EXPECTED = {
    "sglang:own_total[0]": 1, "sglang:own_total[1]": 2, "sglang:steps_total": 20, "sglang:longest": 1,
    "sglang:latency_bucket[1.0]": 1, "sglang:latency_bucket[+Inf]": 2, "sglang:latency_count": 2,
    "sglang:latency_sum": 2,
}  # fmt: skip


def test_each_name_is_there_once_and_counts_are_added_up() -> None:
    families = joined((*kept(0), *kept(1)))
    assert [one.name for one in families] == ["sglang:own", "sglang:steps", "sglang:longest", "sglang:latency"]
    assert values(families) == EXPECTED


def test_a_scrape_has_what_ranks_keep_and_sglang_answers_where_they_keep_none(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    keeping = [*kept(0), *kept(1)]

    async def sglang(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    async def ask(*paths: str) -> list[str]:
        transport = httpx.ASGITransport(OfEveryRank(lambda: keeping, sglang))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return [(await client.get(path)).text for path in paths]

    models, text = asyncio.run(ask("/v1/models", "/metrics"))
    assert models == "/v1/models"
    assert values(list(text_string_to_metric_families(text))) == EXPECTED
    keeping.clear()
    assert asyncio.run(ask("/metrics")) == ["/metrics"]
