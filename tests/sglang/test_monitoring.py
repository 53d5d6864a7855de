"""The metrics of SGLang's own that the dashboard and the alerts ask for are in the SGLang that is installed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

SGLANG = {
    "sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage", "sglang:prompt_tokens_total",
    "sglang:generation_tokens_total", "sglang:time_to_first_token_seconds_bucket",
    "sglang:inter_token_latency_seconds_bucket", "sglang:e2e_request_latency_seconds_bucket",
}  # fmt: skip
"""Their labels are not asked for."""


def test_sglang_has_the_metrics_that_are_asked_for() -> None:
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        pytest.skip("needs SGLang")
    text = (Path(spec.origin).parent / "srt" / "observability" / "metrics_collector.py").read_text()
    kinds = {name: kind for kind, name in re.findall(r"(Gauge|Counter|Histogram)\(\s*name=\"(sglang:\w+)\"", text)}
    wanted = {one.removesuffix("_bucket"): one for one in SGLANG}
    assert {one: kinds.get(one) for one in wanted} == {
        one: "Histogram" if full.endswith("_bucket") else "Counter" if full.endswith("_total") else "Gauge"
        for one, full in wanted.items()
    }
