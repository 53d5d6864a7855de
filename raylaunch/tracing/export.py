"""Takes spans to an OpenTelemetry collector, where one is named by the standard variables; costs nothing where not.

https://opentelemetry.io/docs/specs/otel/protocol/exporter/ has the variables; all that the library knows are honoured.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from raylaunch.background import Background
from raylaunch.tracing.spans import SpanFacts
from raylaunch.values.masking import without_login

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
LIBRARY = "opentelemetry.exporter.otlp.proto.http"
CLOSE_S = 1.5
NOISY = ("opentelemetry.exporter.otlp", "opentelemetry.sdk._shared_internal")
"""Loggers that say at every attempt that a collector cannot be reached, some with a traceback."""

log = logging.getLogger(__name__)


def endpoint(environment: Mapping[str, str]) -> str:
    """Where spans are wanted; "" for nowhere."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return ""
    return next((environment[name] for name in ENDPOINTS if environment.get(name)), "")


def problem(environment: Mapping[str, str]) -> str:
    """Why spans that are wanted cannot be sent, in a line; "" if they can, or are not wanted."""
    if not (where := without_login(endpoint(environment))):
        return ""
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), PROTOCOL)
    if protocol != PROTOCOL:
        return f"no spans are sent to {where}: they go by {PROTOCOL}, not by {protocol}; set {PROTOCOLS[1]}={PROTOCOL}"
    with suppress(ModuleNotFoundError):
        if importlib.util.find_spec(LIBRARY) is not None:
            return ""
    return f"no spans are sent to {where}: OpenTelemetry's exporter is not installed; pip install 'raylaunch[otel]'"


class Tracer:
    """Sends spans on a thread of the library's own. Never raises, never waits for a collector but in :meth:`close`."""

    def __init__(self, where: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

        from raylaunch import __version__

        class Exporter(OTLPSpanExporter):
            said = False

            def export(self, spans: Any) -> SpanExportResult:
                result = super().export(spans)
                if result is not SpanExportResult.SUCCESS and not self.said:
                    self.said = True
                    log.warning("spans cannot be delivered to %s; everything else goes on", without_login(where))
                return result

        for name in NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        resource = Resource.create()
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "raylaunch"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = Exporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("raylaunch", __version__)
        self._closing: Background | None = None

    def send(self, span: SpanFacts, headers: Mapping[str, str] | None = None) -> None:
        """Sends a span that is over, with those inside it.

        Args:
            headers: of the request that it answers, whose ``traceparent`` names the span that it belongs to.
        """
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        try:
            self._send(span, TraceContextTextMapPropagator().extract(headers or {}))
        except Exception:  # whoever tells of his work goes on with it
            log.exception("a span could not be sent")

    def _send(self, span: SpanFacts, context: Any) -> None:
        from opentelemetry import trace

        kind = trace.SpanKind.SERVER if span.served else trace.SpanKind.INTERNAL
        made = self._tracer.start_span(
            span.name, context, kind, dict(span.attributes), start_time=nanoseconds(span.start)
        )
        for name, when in span.events.items():
            made.add_event(name, timestamp=nanoseconds(when))
        if span.error:
            made.set_status(trace.StatusCode.ERROR, span.error)
        for one in span.inside:
            self._send(one, trace.set_span_in_context(made))
        made.end(nanoseconds(max(span.start, span.end)))

    def close(self) -> None:
        """Delivers what is left, for ``CLOSE_S`` seconds at most. May be called more than once."""
        if self._closing is None:
            self._closing = Background(self._provider.shutdown)
            if not self._closing.done(CLOSE_S) and not self._exporter.said:
                self._exporter.said = True
                log.warning("the last spans could not be delivered within %g s", CLOSE_S)


def open_tracer(environment: Mapping[str, str]) -> Tracer | None:
    """A tracer, if spans are wanted and can be sent."""
    where = endpoint(environment)
    if not where or problem(environment):
        return None
    try:
        return Tracer(where)
    except Exception as error:  # what the library says of a variable of its own
        log.warning("no spans are sent to %s: %s: %s", without_login(where), type(error).__name__, error)
        return None


def nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
