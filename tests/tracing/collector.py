"""An OpenTelemetry collector: an HTTP server that keeps the spans that it is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 150.0  # a launch, on a busy machine


class Collector:
    """Attributes:
    spans: all that came, in order.
    services: names of the services that sent them.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Any] = []
        self.services: set[str] = set()

    def receive(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {attributes(resource.resource)["service.name"]}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> Any:
        """The one span of a name, waited for."""
        end = time.monotonic() + WAIT_S
        while all(one.name != name for one in self.spans):
            assert time.monotonic() < end, f"no span {name} among {[one.name for one in self.spans]}"
            time.sleep(0.05)
        (found,) = [one for one in self.spans if one.name == name]
        return found

    def inside(self, span: Any) -> list[Any]:
        return [one for one in self.spans if one.parent_span_id == span.span_id and one.trace_id == span.trace_id]


def attributes(of: Any) -> dict[str, Any]:
    """Attributes as plain values."""

    def value(any_value: Any) -> Any:
        kind = any_value.WhichOneof("value")
        found = getattr(any_value, kind)
        return [value(one) for one in found.values] if kind == "array_value" else found

    return {one.key: value(one.value) for one in of.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.receive(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
