"""Receives OpenTelemetry spans over HTTP and keeps them, for a test or a picture of a trace."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_POLL_S = 0.02


@dataclass(frozen=True)
class ReceivedSpan:
    """One span; ids in hex, empty where there is none; start and end: Unix seconds."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    start: float
    end: float
    attributes: dict[str, Any] = field(hash=False)
    linked_ids: tuple[str, ...]
    """Of the spans that it is linked to."""
    failed: bool

    @property
    def seconds(self) -> float:
        return self.end - self.start


class TraceReceiver:
    """A collector that only remembers.

    Attributes:
        url: its base address, for RPIAE_OTLP_ENDPOINT.
        delay_s: how long it takes to answer.
        status: what it answers.
    """

    def __init__(self) -> None:
        self.url = ""
        self.delay_s = 0.0
        self.status = 200
        self._spans: list[ReceivedSpan] = []
        self._lock = threading.Lock()

    def spans(self, trace_id: str | None = None) -> list[ReceivedSpan]:
        """Those of a trace, or all, by their start."""
        with self._lock:
            found = [span for span in self._spans if trace_id in (None, span.trace_id)]
        return sorted(found, key=lambda span: span.start)

    def wait_for(
        self, enough: Callable[[Sequence[ReceivedSpan]], bool], timeout_s: float = 30
    ) -> list[ReceivedSpan]:
        """All spans, once they are enough.

        Raises:
            TimeoutError: names the spans that are there.
        """
        give_up_at = time.monotonic() + timeout_s
        while not enough(spans := self.spans()):
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"not enough spans: {[span.name for span in spans]}")
            time.sleep(_POLL_S)
        return spans

    def receive(self, body: bytes) -> None:
        """Keep the spans of one request."""
        request = ExportTraceServiceRequest.FromString(body)
        found = [
            _span(span, _attributes(part.resource.attributes).get("service.name", ""))
            for part in request.resource_spans
            for scope in part.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self._spans += found


@contextmanager
def trace_receiver() -> Iterator[TraceReceiver]:
    """A receiver on a free port, for as long as the context lasts."""
    receiver = TraceReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces", self.path
            time.sleep(receiver.delay_s)
            if receiver.status == 200:
                receiver.receive(body)
            self.send_response(receiver.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _span(span: Any, service: str) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        service=service,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        attributes=_attributes(span.attributes),
        linked_ids=tuple(link.span_id.hex() for link in span.links),
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
