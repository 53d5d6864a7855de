"""What spans say, as plain data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raylaunch.errors import LaunchError
from raylaunch.protocol import Gate, Phase
from raylaunch.report import Due, LaunchReport, Span
from raylaunch.tracing.export import endpoint, problem
from raylaunch.tracing.spans import RequestFacts, SpanFacts, launch_span, request_span
from tests.test_report import START, report_of


def by_name(spans: tuple[SpanFacts, ...]) -> dict[str, SpanFacts]:
    assert len({one.name for one in spans}) == len(spans)
    return {one.name: one for one in spans}


def test_a_launch_has_its_phases_and_they_what_the_driver_and_each_rank_did() -> None:
    report = report_of()
    report.group = "tiny-012345"
    report.driver.append(Span("first request", report.ready, report.ready + 2, Phase.VERIFY))
    whole = launch_span(report, report.ready + 2, about={"raylaunch.engine": "reference"})
    assert (whole.start, whole.end, whole.error) == (START, report.ready + 2, "")
    assert whole.attributes == {
        "raylaunch.launch": "tiny-012345",
        "raylaunch.attempt": 1,
        "raylaunch.engine": "reference",
    }
    phases = by_name(whole.inside)
    assert list(phases) == [phase.name for phase in Phase if phase is not Phase.SERVE]
    place, connect, verify = phases["PLACE"], phases["CONNECT"], phases["VERIFY"]
    assert [one.name for one in place.inside] == ["PLACE placement", "PLACE actors"]
    assert (place.start, place.end, connect.start) == (START, START + 3, START + 3)
    assert round(connect.end - connect.start, 3) == round(report.elapsed(Phase.CONNECT), 3)
    ranks = by_name(connect.inside)
    assert list(ranks) == ["CONNECT rank 0", "CONNECT rank 1"]
    assert ranks["CONNECT rank 1"].attributes == {
        "raylaunch.rank": 1,
        "host.name": "10.0.0.1",
        "process.pid": 11,
        "raylaunch.device": "cpu",
        "raylaunch.busy_s": pytest.approx(6),
    }
    assert verify.end == report.ready + 2
    assert [one.name for one in verify.inside] == ["VERIFY first request", "VERIFY rank 0", "VERIFY rank 1"]


def test_rounds_of_captures_are_within_their_phases() -> None:
    """Prefill is registered before decode is captured: both phases last until the second round's end."""
    report = report_of()
    phases = by_name(launch_span(report, report.ready).inside)
    captured, registered = report.facts(Gate.CAPTURED), report.facts(Gate.REGISTERED)
    assert len(captured) == len(registered) == 2
    assert phases["REGISTER"].start < phases["CAPTURE"].end < phases["REGISTER"].end == phases["VERIFY"].start


@pytest.mark.parametrize("error", [LaunchError("ranks differ", "F03", "CAPTURE", rank=1), LaunchError("no idea")])
def test_a_launch_that_failed_ends_in_the_phase_that_it_failed_in(error: LaunchError) -> None:
    report = report_of()
    report.steps = [one for one in report.steps if one.step.phase.value <= Phase.WARMUP.value]
    report.due = Due(Phase.CAPTURE, "CAPTURE", 0.0)
    now = report.steps[-1].released
    whole = launch_span(report, now + 5, error)
    assert whole.error == error.headline()
    assert whole.attributes["error.type"] == (error.code or "LaunchError")
    assert whole.attributes.get("raylaunch.rank") == error.rank
    last = whole.inside[-1]
    assert (last.name, last.start, last.end, last.error) == ("CAPTURE", now, now + 5, error.headline())
    assert [one.error for one in whole.inside[:-1]] == [""] * 4


def test_a_launch_that_did_not_come_to_its_placement() -> None:
    whole = launch_span(LaunchReport("tiny", START), START + 1, LaunchError("no Ray", phase="PLACE"))
    assert [(one.name, one.start, one.end) for one in whole.inside] == [("PLACE", START, START + 1)]


FACTS = RequestFacts("POST", "/generate", START, 200, "req_1", START + 1, ["stop", "length"], {1: (6, 2), 2: (6, 8)})


def test_a_request() -> None:
    span = request_span(FACTS, START + 3, "tiny-adder")
    assert (span.name, span.start, span.end, span.served) == ("POST /generate", START, START + 3, True)
    assert span.events == {"first token": START + 1}
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "gen_ai.request.model": "tiny-adder",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.response.finish_reasons": ("stop", "length"),
        "raylaunch.request_id": "req_1",
    }


@pytest.mark.parametrize(
    ("status", "reasons", "error"),
    [(200, ["stop"], ""), (429, [], ""), (503, ["error"], "HTTP 503"), (200, ["error"], "the answer broke off"),
     (0, ["gone"], "gone")],
)  # fmt: skip
def test_which_requests_have_failed(status: int, reasons: list[str], error: str) -> None:
    span = request_span(replace(FACTS, status=status, reasons=reasons), START + 3, "m")
    assert span.error == error
    assert ("error.type" in span.attributes) == bool(error)


@pytest.mark.parametrize(
    ("environment", "where"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t"}, "http://t"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "TRUE"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, ""),
    ],
)
def test_where_spans_go(environment: dict[str, str], where: str) -> None:
    assert endpoint(environment) == where


def test_what_keeps_them_from_going(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    assert problem({}) == problem(wanted) == ""
    by_grpc = problem({**wanted, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert by_grpc == (
        "no spans are sent to http://c: they go by http/protobuf, not by grpc; "
        "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
    )
    for name in ("opentelemetry.nowhere", "nowhere.at.all"):
        monkeypatch.setattr("raylaunch.tracing.export.LIBRARY", name)
        assert problem(wanted).endswith("pip install 'raylaunch[otel]'")
        assert problem({}) == ""
