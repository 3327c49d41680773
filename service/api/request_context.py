"""What every request gets: `x-request-id`, `Server-Timing`, a log line, metrics.

The very last error handler sits here too, so that its answer carries the same headers.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.manifest import Task
from service.api.error_response import CLIENT_CLOSED_REQUEST, internal_error, shutting_down
from service.api.outcomes import Outcome, outcome_of
from service.log import bind_request, get_logger
from service.metrics import REQUEST_SECONDS, REQUESTS
from service.tracing import Tracing

_USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
# What runs the model, by where it is asked for: also what is refused on its way there counts.
TASKS: dict[str, Task] = {
    "/v1/images/generations": "generate",
    "/v1/images/edits": "edit",
    "/v1/images/variations": "variation",
    "/v1/latents/encode": "encode",
    "/v1/latents/decode": "decode",
}
PROBES = ("/healthz", "/readyz", "/metrics")  # asked every few seconds, logged only when debugging


@dataclass(slots=True)
class RequestContext:
    """State of one request, in `scope["state"]`; endpoints add what they learn."""

    id: str
    traceparent: str = ""
    """Of the request's span, or of its client where there are no spans; empty if neither."""
    started_at: float = field(default_factory=time.perf_counter)
    caller: str = ""
    """Whose limits this request counts against: a key's digest, or an address."""
    status: int | None = None
    stages_s: dict[str, float] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    """Further headers of the answer, whatever it will be."""
    failure: int | None = None
    """Status that a stream would have had, had its error come before its first byte."""
    limited: bool = False
    """The caller's own limits refused it."""

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started_at

    def add_stages(self, timings_s: Mapping[str, float]) -> None:
        """Take over the stages of a job; of jobs that run side by side the longest counts."""
        for name, value in timings_s.items():
            self.stages_s[name] = max(value, self.stages_s.get(name, 0.0))

    def server_timing(self) -> str:
        """Value of the Server-Timing header: milliseconds per stage, and in all."""
        stages = {**self.stages_s, "total": self.seconds}
        return ", ".join(f"{name};dur={1000 * value:.1f}" for name, value in stages.items())

    def outcome(self) -> Outcome:
        """The label that metrics give this request."""
        status = self.failure or self.status or CLIENT_CLOSED_REQUEST
        return outcome_of(status, limited=self.limited)


def context_of(request: Request) -> RequestContext:
    """The context that the outermost layer made for this request."""
    context: RequestContext = request.state.context
    return context


class RequestContextMiddleware:
    """Outermost layer of the application."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing
        self._log = get_logger(__name__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = self._context(Headers(scope=scope))
        scope.setdefault("state", {})["context"] = context
        self._tracing.annotate(request_id=context.id)
        ids = {"trace_id": context.traceparent[3:35]} if context.traceparent else {}
        bind_request(context.id, **ids)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(context.headers)
                headers["x-request-id"] = context.id
                headers["server-timing"] = context.server_timing()
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            # Only the server's shutdown cancels a request, and the request ends here anyway.
            if context.status is not None:
                raise
            await shutting_down()(scope, receive, send_with_headers)
        except Exception:
            self._log.exception("request failed unexpectedly", path=scope["path"])
            context.failure = 500
            if context.status is None:
                await internal_error()(scope, receive, send_with_headers)
        finally:
            self._record(scope, context)

    def _context(self, headers: Headers) -> RequestContext:
        offered, parent = headers.get("x-request-id", ""), headers.get("traceparent", "")
        return RequestContext(
            offered if _USABLE_ID.fullmatch(offered) else f"req_{secrets.token_hex(12)}",
            self._tracing.traceparent() or (parent if _TRACEPARENT.fullmatch(parent) else ""),
        )

    def _record(self, scope: Scope, context: RequestContext) -> None:
        task = TASKS.get(scope["path"]) if scope["method"] == "POST" else None
        if task is not None:
            REQUESTS.labels(task=task, outcome=context.outcome()).inc()
            REQUEST_SECONDS.labels(task=task).observe(context.seconds)
        write = self._log.debug if scope["path"] in PROBES else self._log.info
        group_id = context.headers.get("x-rpiae-job")
        write(
            "request answered",
            **({"group_id": group_id} if group_id else {}),
            method=scope["method"],
            path=scope["path"],
            status=context.failure or context.status,
            seconds=round(context.seconds, 4),
        )
