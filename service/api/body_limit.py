"""No request body grows past the limit, whatever its Content-Length says or leaves out."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.body import body_too_large


class BodyLimitMiddleware:
    """Fails the read of a body: at once when it declares too much, else when too much arrived.

    The error surfaces where an endpoint reads its body, and is answered like any other.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        content_length = Headers(scope=scope).get("content-length", "")
        declared_bytes = int(content_length) if content_length.isdecimal() else 0
        num_bytes = 0

        async def counted_receive() -> Message:
            nonlocal num_bytes
            if declared_bytes > self._max_bytes:
                raise body_too_large(self._max_bytes)
            message = await receive()
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                if num_bytes > self._max_bytes:
                    raise body_too_large(self._max_bytes)
            return message

        await self._app(scope, counted_receive, send)
