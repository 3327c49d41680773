"""No more requests at once than the process can keep connections for."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.error_response import error_response
from service.api.request_context import PROBES
from service.errors import ServiceError

_RETRY_S = 1.0


class BusyLimitMiddleware:
    """Answers 503 to requests beyond the limit, but always answers probes.

    Connections that idle are closed before that.
    """

    def __init__(self, app: ASGIApp, max_requests: int) -> None:
        self._app = app
        self._max_requests = max_requests
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        if self._num_requests >= self._max_requests:
            error = ServiceError(
                f"{self._num_requests} requests are being answered: try again in a moment",
                status=503,
                code="too_many_connections",
                retry_after_s=_RETRY_S,
            )
            response = error_response(error)
            response.headers["connection"] = "close"
            await response(scope, receive, send)
            return
        self._num_requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_requests -= 1
