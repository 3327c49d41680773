"""No request body grows past the limit or trickles in for ever, whatever its head says."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.body import body_too_large
from service.errors import InvalidRequest

# A body that holds so many bytes may take a second more.
_MIN_BYTES_PER_S = 2**14


class BodyLimitMiddleware:
    """Fails the read of a body that declares too much, is too much, is packed, or comes too slowly.

    The error surfaces where an endpoint reads its body, and is answered like any other. Only time
    spent waiting for the client counts.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, read_timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._read_timeout_s = read_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, Headers(scope=scope), self._max_bytes, self._read_timeout_s)
        await self._app(scope, body.receive, send)


class _Body:
    """The body of one request on its way in."""

    def __init__(
        self, receive: Receive, headers: Headers, max_bytes: int, read_timeout_s: float
    ) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._patience_s = read_timeout_s
        self._encoding = headers.get("content-encoding", "identity").strip().lower()
        declared = headers.get("content-length", "")
        self._declared_bytes = int(declared) if declared.isdecimal() else 0
        self._num_bytes = 0
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        if self._encoding not in ("identity", ""):
            raise InvalidRequest(
                f"content-encoding is {self._encoding[:40]}: send the body as it is",
                status=415,
                code="unsupported_content_encoding",
            )
        if self._declared_bytes > self._max_bytes:
            raise body_too_large(self._max_bytes)
        started = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, self._patience_s)):
                message = await self._receive()
        except TimeoutError:
            raise InvalidRequest(
                "the request body came too slowly: send it again, faster or in a smaller size",
                status=408,
                code="body_too_slow",
            ) from None
        if message["type"] == "http.request":
            num_bytes = len(message.get("body", b""))
            self._num_bytes += num_bytes
            self._patience_s += num_bytes / _MIN_BYTES_PER_S - (time.monotonic() - started)
            self._complete = not message.get("more_body", False)
            if self._num_bytes > self._max_bytes:
                raise body_too_large(self._max_bytes)
        return message
