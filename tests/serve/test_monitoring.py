"""What an operator is given to watch a server: every metric and label in it is one that a server has.

PromQL is parsed by Prometheus' own grammar (``promql-parser``). What no test here sees is Grafana itself, and whether a
threshold is a good one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from raylaunch import LaunchConfig, Replicas
from raylaunch.config import ServeConfig
from raylaunch.serve.metrics import Metrics
from tests.head import ROOT
from tests.serve.fake_engine import SETTINGS, FakeEngine, lost
from tests.sglang.test_monitoring import SGLANG

promql = pytest.importorskip("promql_parser")
FOLDER = ROOT / "examples" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
ALERTS = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
TARGET = {"instance", "job"}
"""Labels that Prometheus adds to whatever it scrapes."""


def exported() -> dict[str, set[str]]:
    """Names of all samples that a server exports, each with its labels, of one group and of several."""
    found: dict[str, set[str]] = {"up": set(), **{one: {"le"} if one.endswith("_bucket") else set() for one in SGLANG}}
    groups = FakeEngine(), FakeEngine()
    for engine in groups:
        engine.fail(lost())
        engine.ranks = FakeEngine().ranks
    replicas = Replicas(LaunchConfig.default([*SETTINGS, "parallel.replicas=2"]))
    replicas.engines = groups  # type: ignore[assignment]
    for each in (groups[0], replicas):
        metrics = Metrics(each, ServeConfig())  # type: ignore[arg-type]
        metrics.responses.labels("/generate", "200").inc()
        request = metrics.observe()
        request.started("generate", 1)
        request.tokens(1)
        request.finished("stop")
        for family in metrics.registry.collect():
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    found.setdefault(sample.name, set()).update(sample.labels)
    return found


EXPORTED = exported()


def expressions() -> Iterator[tuple[str, str, set[str]]]:
    """Where, the expression, and labels that its legend or its words name."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"], set(re.findall(r"{{\s*(\w+)\s*}}", annotation["titleFormat"]))
    for rule in ALERTS:
        yield rule["alert"], rule["expr"], set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))


def parsed(expression: str) -> Any:
    return promql.parse(expression.replace("$__rate_interval", "5m").replace("$instance", ".*"))


def nodes(node: Any) -> Iterator[Any]:
    yield node
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        if (below := getattr(node, name, None)) is not None:
            yield from nodes(below)
    for below in getattr(node, "args", None) or ():
        yield from nodes(below)


def problems(expression: str, shown: set[str]) -> list[str]:
    """What an expression names that no server has; labels must be those of one of its metrics."""
    found, labels, known = [], set(shown), set(TARGET)
    for node in nodes(parsed(expression)):
        if isinstance(node, promql.VectorSelector):
            of_metric = EXPORTED.get(node.name)
            if of_metric is None:
                found.append(f"no metric {node.name}")
                continue
            known |= of_metric
            used = {one.name for one in node.matchers.matchers}
            found += [f"no label {one} of {node.name}" for one in sorted(used - of_metric - TARGET)]
        modifier = getattr(node, "modifier", None)
        if modifier is not None:
            matching = getattr(modifier, "matching", None)
            labels |= set(getattr(modifier, "labels", ())) | set(getattr(modifier, "group_labels", None) or ())
            labels |= set(matching.labels) if matching is not None else set()
    return found + [f"no label {one} of what it asks for" for one in sorted(labels - known)]


@pytest.mark.parametrize(("where", "expression", "shown"), expressions())
def test_what_is_asked_for_exists(where: str, expression: str, shown: set[str]) -> None:
    assert problems(expression, shown) == []


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("raylaunch_readi == 0", ["no metric raylaunch_readi"]),
        ('raylaunch_ready{rank="0"}', ["no label rank of raylaunch_ready"]),
        ("sum by (rank) (raylaunch_ready)", ["no label rank of what it asks for"]),
        ("raylaunch_ready and on (fault) raylaunch_restarts_left", ["no label fault of what it asks for"]),
        ("rate(raylaunch_restarts[1m])", ["no metric raylaunch_restarts"]),
    ],
)
def test_what_does_not_exist_is_found(expression: str, found: list[str]) -> None:
    assert problems(expression, set()) == found


def test_every_metric_of_a_server_is_on_the_dashboard() -> None:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    shown = {node.name for one in panels for node in nodes(parsed(one)) if isinstance(node, promql.VectorSelector)}
    of_a_histogram = {f"{one.removesuffix('_bucket')}{part}" for one in shown for part in ("_sum", "_count")}
    assert {one for one in EXPORTED if one.startswith("raylaunch_")} <= shown | of_a_histogram
    assert shown >= SGLANG


def test_every_page_of_the_scrapes_is_a_servers() -> None:
    from raylaunch.serve import metrics

    scrapes = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    assert [one["metrics_path"] for one in scrapes["scrape_configs"]] == [metrics.OWN, metrics.METRICS]
    assert [(FOLDER / one).is_file() for one in scrapes["rule_files"]] == [True]
    assert {rule["labels"]["severity"] for rule in ALERTS} == {"warning", "critical"}


def test_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
