"""Spans reach a collector, and one that does not answer costs nothing."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from starlette.testclient import TestClient

from raylaunch.config import ServeConfig
from raylaunch.serve import build_app
from raylaunch.tracing.export import Tracer, open_tracer, problem
from raylaunch.tracing.spans import launch_span
from tests.busy import patient
from tests.serve.answering_engine import AnsweringEngine
from tests.test_report import report_of
from tests.tracing.collector import attributes, collecting

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def opened(url: str, monkeypatch: pytest.MonkeyPatch) -> Tracer:
    monkeypatch.setenv(ENDPOINT, url)
    tracer = open_tracer({ENDPOINT: url})
    assert tracer is not None
    return tracer


def test_without_an_endpoint_there_is_no_tracer() -> None:
    assert open_tracer({}) is None


def test_a_login_is_not_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # answers 501
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://me:hunter2@127.0.0.1:{server.server_port}"
        assert "hunter2" not in problem({ENDPOINT: url, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
        tracer = opened(url, monkeypatch)
        report = report_of()
        tracer.send(launch_span(report, report.ready))
        tracer.close()
        server.shutdown()
    assert "spans cannot be delivered to http://***@127.0.0.1:" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_wrong_variable_of_the_librarys_costs_the_spans(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")  # less than what is sent at once
    assert open_tracer({ENDPOINT: "http://127.0.0.1:9"}) is None
    assert "no spans are sent to http://127.0.0.1:9: ValueError: " in caplog.text


def test_a_launch_arrives_as_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of()
    with collecting() as collector:
        tracer = opened(collector.url, monkeypatch)
        tracer.send(launch_span(report, report.ready))
        tracer.close()
        tracer.close()
        launch = collector.named("launch")
        assert launch.start_time_unix_nano == int(report.started * 1e9)
        assert not launch.parent_span_id
        assert {one.name for one in collector.inside(launch)} >= {"PLACE", "CONNECT", "LOAD", "VERIFY"}
        load = collector.named("LOAD")
        assert [one.name for one in collector.inside(load)] == ["LOAD rank 0", "LOAD rank 1"]
        assert collector.services == {"raylaunch"}


def test_a_service_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "adder")
    with collecting() as collector:
        tracer = opened(collector.url, monkeypatch)
        tracer.send(launch_span(report_of(), 0.0))
        tracer.close()
        assert collector.services == {"adder"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_belongs_to_its_clients_trace(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    engine = AnsweringEngine()
    with collecting() as collector:
        engine.tracer = opened(collector.url, monkeypatch)  # type: ignore[assignment]
        client = TestClient(build_app(engine, ServeConfig()))  # type: ignore[arg-type]
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
        body = {"text": ["12+30=", "7+8="], "stream": stream}
        assert client.post("/generate", json=body, headers=headers).status_code == 200
        client.get("/health")
        client.get("/12+30=")
        assert client.post("/generate", json={"text": 1}).status_code == 400
        engine.tracer.close()  # type: ignore[attr-defined]
        answered, refused = collector.spans
        assert (answered.trace_id.hex(), answered.parent_span_id.hex()) == (TRACE, PARENT)
        assert (refused.trace_id.hex() != TRACE, refused.parent_span_id) == (True, b"")
        assert answered.kind == 2, "of a server"
        said = attributes(answered)
        assert said["http.response.status_code"] == 200
        assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (10, 4)
        assert (said["gen_ai.response.finish_reasons"], said["raylaunch.request_id"]) == (["stop", "stop"], "mine")
        assert [event.name for event in answered.events] == ["first token"]
        assert answered.start_time_unix_nano <= answered.events[0].time_unix_nano <= answered.end_time_unix_nano
        assert attributes(refused)["http.response.status_code"] == 400
        assert "12+30" not in str(collector.spans)


def test_a_trace_that_its_client_does_not_keep_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        tracer = opened(collector.url, monkeypatch)
        tracer.send(launch_span(report_of(), 0.0), {"traceparent": f"00-{TRACE}-{PARENT}-00"})
        tracer.close()
        assert collector.spans == []


def test_a_span_that_cannot_be_made_is_said_and_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with collecting() as collector:
        tracer = opened(collector.url, monkeypatch)
        tracer.send(replace(launch_span(report_of(), 0.0), start=math.nan))
        tracer.close()
    assert [one.getMessage() for one in caplog.records] == ["a span could not be sent"]


@pytest.mark.parametrize("listens", [False, True])
def test_a_collector_that_does_not_answer_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], listens: bool
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        if listens:
            one.listen()  # and takes nothing in
        began = time.monotonic()
        with caplog.at_level(logging.DEBUG):
            tracer = opened(f"http://127.0.0.1:{one.getsockname()[1]}", monkeypatch)
            for _ in range(50):
                tracer.send(launch_span(report_of(), 0.0))
            assert time.monotonic() - began < patient(2)
            began = time.monotonic()
            tracer.close()
            assert time.monotonic() - began < patient(2)
        ours = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert [one for one in ours if "spans could" not in one and "spans cannot" not in one] == []
    assert len(ours) == 1
    assert "Traceback" not in capfd.readouterr().err
