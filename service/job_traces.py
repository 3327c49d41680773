"""What the jobs of a worker go through, as OpenTelemetry spans.

A job's trace is the one of its request. Its span reaches from its arrival in the queue to its end,
and below it one stage follows the other, with a span `pause` where the job waited for its turn:
queue, prepare (reads the payload), encode (the source), prefill, denoise with a span for each step,
decode, compress (writes the file), publish. Previews lie beside them.

The engine computes for several jobs in one call. Each call is a span of a trace of its own, `batch
denoise` and the like, which is linked to the spans of the jobs that had part in it, and they to it.

The spans are made in the worker's loop from what each tick notes, not on the engine's thread.
Times are seconds of time.perf_counter.
"""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.engine.work import Denoised, EngineCall, Stepped, Tick
from service.jobs.job import Delivery
from service.tracing import JobTrace, JobTraces

_LEAST_PAUSE_S = 2e-4  # shorter ones are the loop's own and get no span
_NONE: Mapping[str, int] = MappingProxyType({})


class RecordedTraces(JobTraces):
    """Traces of the jobs that a worker holds.

    Args:
        tracer: of the jobs' spans.
        shared: of the spans of calls that several jobs share.
    """

    wants_calls = True

    def __init__(self, tracer: Tracer, shared: Tracer) -> None:
        self._tracer = tracer
        self._shared = shared
        self._traces: dict[str, RecordedTrace] = {}

    def begin(self, delivery: Delivery) -> JobTrace:
        """See `JobTraces.begin`; a job whose request is not sampled is not recorded."""
        job = delivery.job
        taken = time.perf_counter()
        put = taken - delivery.waited_s
        span = self._tracer.start_span(
            "job",
            TraceContextTextMapPropagator().extract({"traceparent": job.traceparent}, Context()),
            SpanKind.CONSUMER,
            {
                "rpiae.job_id": job.id,
                "rpiae.request_id": job.request_id,
                "rpiae.task": job.task,
                "rpiae.model": job.model,
                "rpiae.priority": job.priority,
                "rpiae.num_deliveries": delivery.num_deliveries,
            },
            start_time=_unix_ns(put),
        )
        if not span.is_recording():
            return JobTrace()
        recorded = RecordedTrace(self._tracer, span, put, lambda: self._forget(job.id, recorded))
        recorded.add("queue")
        self._traces[job.id] = recorded
        return recorded

    def note(self, tick: Tick) -> None:
        """See `JobTraces.note`."""
        steps = {event.job_id: event.step for event in tick.events if isinstance(event, Stepped)}
        for call in tick.calls:
            spans = [
                self._traces[job_id].begin_call(call, steps.get(job_id))
                for job_id in dict.fromkeys(call.job_ids)
                if job_id in self._traces
            ]
            if spans:
                self._end_call(call, spans, tick)
        for event in tick.events:
            if isinstance(event, Denoised) and event.job_id in self._traces:
                self._traces[event.job_id].end_denoise()

    def _end_call(self, call: EngineCall, spans: list[Span], tick: Tick) -> None:
        """End the jobs' spans of a call, and record the call itself, linked to them."""
        num_jobs = len(set(call.job_ids))
        attributes = {"rpiae.num_jobs": num_jobs}
        if call.stage == "denoise":
            attributes["rpiae.rows"] = tick.step_rows
            attributes["rpiae.padding_rows"] = tick.padding_rows
        batch = self._shared.start_span(
            f"batch {call.stage}",
            Context(),
            attributes=attributes,
            links=[Link(span.get_span_context()) for span in spans],
            start_time=_unix_ns(call.started),
        )
        ended = _unix_ns(call.started + call.seconds)
        for span in spans:
            span.add_link(batch.get_span_context())
            span.set_attribute("rpiae.num_jobs", num_jobs)
            span.end(ended)
        batch.end(ended)

    def _forget(self, job_id: str, ended: "RecordedTrace") -> None:
        if self._traces.get(job_id) is ended:  # not if it arrived anew meanwhile
            del self._traces[job_id]


class RecordedTrace(JobTrace):
    """One delivery's spans.

    Args:
        span: the job's, which has begun.
        started: when.
        on_end: called when it has ended.
    """

    def __init__(
        self, tracer: Tracer, span: Span, started: float, on_end: Callable[[], None]
    ) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span, Context())
        self._denoise: Span | None = None
        self._reached = started  # the end of the latest stage
        self._stepped = started  # the end of the latest step
        self._on_end = on_end

    def add(self, name: str, started: float | None = None) -> None:
        """See `JobTrace.add`."""
        started = self._reached if started is None else started
        self._await(started)
        self._reached = time.perf_counter()
        self._start(name, started).end(_unix_ns(self._reached))

    def add_beside(self, name: str, started: float) -> None:
        """See `JobTrace.add_beside`."""
        self._start(name, started).end()

    def begin_call(self, call: EngineCall, step: int | None) -> Span:
        """The span of this job's part in a call of the engine, for the caller to end.

        Args:
            step: how many steps the job has made then, None if the tick had none of it.
        """
        if call.stage == "preview":
            return self._start("preview", call.started)
        if self._denoise is None or call.stage != "denoise":
            self._await(call.started)
        self._reached = call.started + call.seconds
        if call.stage != "denoise":
            return self._start(call.stage, call.started)
        if self._denoise is None:
            self._denoise = self._start("denoise", call.started)
        self._stepped = self._reached
        context = trace.set_span_in_context(self._denoise, Context())
        attributes = _NONE if step is None else {"rpiae.step": step}
        return self._start("step", call.started, context, attributes)

    def end_denoise(self) -> None:
        """The last step is done."""
        if self._denoise is not None:
            self._denoise.end(_unix_ns(self._stepped))

    def fail(self, error: Exception) -> None:
        """See `JobTrace.fail`; without the message, which may quote the user."""
        self.outcome = "failed"
        self._span.set_attribute("error.type", type(error).__name__)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        """See `JobTrace.end`."""
        if self._denoise is not None and self._denoise.is_recording():
            self.end_denoise()  # in the midst of it
        self._span.set_attribute("rpiae.outcome", self.outcome)
        self._span.end()
        self._on_end()

    def _await(self, until: float) -> None:
        if until - self._reached > _LEAST_PAUSE_S:
            self._start("pause", self._reached).end(_unix_ns(until))

    def _start(
        self,
        name: str,
        started: float,
        context: Context | None = None,
        attributes: Mapping[str, int] = _NONE,
    ) -> Span:
        return self._tracer.start_span(
            name,
            self._context if context is None else context,
            attributes=attributes,
            start_time=_unix_ns(started),
        )


def _unix_ns(moment: float) -> int:
    return time.time_ns() - round((time.perf_counter() - moment) * 1e9)
