"""Traces of requests and jobs, where a collector is set; elsewhere nothing is recorded or imported.

The classes here do nothing. Those of `service.otlp` and `service.job_traces` do, and only they
import OpenTelemetry, whose packages (the extra `tracing`) not everybody has.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from service.log import get_logger
from service.settings import ENV_PREFIX, Settings, SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from service.engine.work import Tick
    from service.jobs.job import Delivery

log = get_logger(__name__)

Outcome: TypeAlias = Literal["succeeded", "failed", "cancelled", "released"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_NO_SPAN = nullcontext()


class JobTrace:
    """What one job's delivery to this worker goes through; this one records nothing.

    Attributes:
        outcome: how it ended; set before `end`. `released`: it was lost or given back.
    """

    outcome: Outcome = "released"

    def add(self, name: str, started: float | None = None) -> None:
        """A stage that ends now.

        Args:
            started: by time.perf_counter; None: when the stage before it ended.
        """

    def add_beside(self, name: str, started: float) -> None:
        """Something that ends now and that the job's own stages did not wait for."""

    def fail(self, error: Exception) -> None:
        """The job failed."""

    def end(self) -> None:
        """The worker does not hold the job any more."""


class JobTraces:
    """Of the jobs that a worker holds; these record nothing.

    Attributes:
        wants_calls: the engine is to note its calls in each tick.
    """

    wants_calls = False

    def begin(self, delivery: "Delivery") -> JobTrace:
        """A job arrived."""
        return JobTrace()

    def note(self, tick: "Tick") -> None:
        """The engine made a tick."""


class Tracing:
    """Of one process; this one records nothing.

    Attributes:
        provider: what the web framework makes its spans with, None where it shall make none.
    """

    provider: "TracerProvider | None" = None

    def span(self, name: str, **attributes: str | int) -> AbstractContextManager[Any]:
        """A part of the current request, for as long as the context lasts."""
        return _NO_SPAN

    def annotate(self, **attributes: str | int) -> None:
        """Attributes of the current span."""

    def traceparent(self) -> str:
        """The current span by W3C Trace Context, empty where there is none."""
        return ""

    def job_traces(self) -> JobTraces:
        """Those of this worker."""
        return JobTraces()

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""


def start_tracing(settings: Settings, service: Literal["gateway", "worker"]) -> Tracing:
    """Tracing of this process, as the settings and the standard variables OTEL_* ask for it.

    Raises:
        SettingsError: RPIAE_OTLP_ENDPOINT is set and the packages are missing. Where only OTEL_*
            are set, maybe for all programs of a machine, there is a warning instead, and no traces.
    """
    ours = settings.otlp_endpoint
    if not (ours or any(map(os.environ.get, _ENDPOINTS))) or _switched_off():
        return Tracing()
    protocol = next(filter(None, map(os.environ.get, _PROTOCOLS)), _PROTOCOL)
    if not ours and protocol != _PROTOCOL:
        log.warning(
            "no traces: only OTLP over HTTP is there, set OTEL_EXPORTER_OTLP_PROTOCOL="
            f"{_PROTOCOL} and the collector's port for it, usually 4318",
            protocol=protocol,
        )
        return Tracing()
    try:
        # Not everybody has what it imports.
        from service.otlp import OtlpTracing
    except ImportError as error:
        problem = f"the packages for traces are missing ({error}): install rpiae[tracing]"
        if ours:
            raise SettingsError(f"{ENV_PREFIX}OTLP_ENDPOINT: {problem}") from None
        log.warning(f"no traces: {problem}")
        return Tracing()
    return OtlpTracing(service, ours)


def _switched_off() -> bool:
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
