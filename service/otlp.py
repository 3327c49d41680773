"""Traces by OpenTelemetry, sent to a collector over HTTP.

What is sent waits in a queue of bounded length and leaves on a thread of its own, so a collector
that is slow or gone costs spans, never a request. Sampling, resource attributes, headers, batch
sizes and the like are the standard variables OTEL_*.
"""

import logging
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from service.log import get_logger
from service.tracing import JobTraces, Tracing

log = get_logger(__name__)

_TIMEOUT_S = 5.0
_FLUSH_S = 3.0
_TIMEOUTS = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")


class OtlpTracing(Tracing):
    """Records and sends.

    Args:
        service: part of the name under which the process shows, unless OTEL_SERVICE_NAME says it.
        endpoint: base address of the collector; None: as OTEL_EXPORTER_OTLP_* say.
    """

    provider: TracerProvider

    def __init__(self, service: str, endpoint: str | None) -> None:
        resource = _resource(service)
        self._exporter = _Exporter(endpoint)
        processor = BatchSpanProcessor(self._exporter)
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.provider.add_span_processor(processor)
        # Calls that several jobs share belong to none of their traces. They are recorded exactly
        # when one of these jobs is, which no sampler of theirs could know.
        self._shared = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._shared.add_span_processor(processor)
        self._tracer = self.provider.get_tracer("rpiae")
        # From now on, when it has said what it thinks of the variables: it would log each attempt
        # that fails, and `_Exporter` says so once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def span(self, name: str, **attributes: str | int) -> AbstractContextManager[Any]:
        """See `Tracing.span`."""
        # An error is the request's, which has its status; its message may quote the user.
        return self._tracer.start_as_current_span(
            name,
            attributes=_named(attributes),
            record_exception=False,
            set_status_on_exception=False,
        )

    def annotate(self, **attributes: str | int) -> None:
        """See `Tracing.annotate`."""
        trace.get_current_span().set_attributes(_named(attributes))

    def traceparent(self) -> str:
        """See `Tracing.traceparent`."""
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def job_traces(self) -> JobTraces:
        """See `Tracing.job_traces`."""
        # Only here: it knows the engine's work, which is of torch, and a gateway has none.
        from service.job_traces import RecordedTraces

        return RecordedTraces(self._tracer, self._shared.get_tracer("rpiae"))

    def close(self) -> None:
        """See `Tracing.close`."""
        sending = threading.Thread(target=self.provider.shutdown, daemon=True)
        sending.start()
        # Nothing is gained by waiting for one that does not answer.
        sending.join(0 if self._exporter.failing else _FLUSH_S)
        if sending.is_alive():
            self._exporter.shutdown()


class _Exporter(SpanExporter):
    """OTLP's, which tells once that it fails, and once that it works again.

    Attributes:
        failing: the last sending failed.
    """

    def __init__(self, endpoint: str | None) -> None:
        self.failing = False
        self._ended = threading.Lock()
        self._otlp = OTLPSpanExporter(
            endpoint=endpoint and f"{endpoint}/v1/traces",
            timeout=None if any(map(os.environ.get, _TIMEOUTS)) else _TIMEOUT_S,
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send, or drop."""
        reason = "the collector refused them or did not answer"
        try:
            result = self._otlp.export(spans)
        except Exception as error:  # such as an address that is none; it costs spans, nothing else
            result, reason = SpanExportResult.FAILURE, str(error)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self.failing:
            log.warning(
                "traces cannot be sent and are dropped until the collector answers", reason=reason
            )
        elif self.failing and not failed:
            log.info("traces are sent again")
        self.failing = failed
        return result

    def shutdown(self) -> None:
        """End also what is being tried again."""
        if self._ended.acquire(blocking=False):
            self._otlp.shutdown()  # type: ignore[no-untyped-call]


def _resource(service: str) -> Resource:
    attributes = {
        "service.name": f"rpiae-{service}",
        "service.version": metadata.version("rpiae"),
        "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
    }
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before it.
    return Resource.create(attributes).merge(OTELResourceDetector().detect())


def _named(attributes: Mapping[str, str | int]) -> dict[str, str | int]:
    return {f"rpiae.{name}": value for name, value in attributes.items()}
