"""One client's connection: uvicorn's protocol, with an end to everything that a client can delay.

What a client may hold up without end in the original: the head of a request, the rest of a body
that was already answered, and an answer that it does not read.
"""

import asyncio
import json
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.errors import ErrorBody

_MAX_HEAD_BYTES = 2**16


@dataclass(frozen=True)
class ConnectionLimits:
    """Shared by the connections of one server. Times in seconds.

    `idle` holds those that wait for a request, longest wait first.
    """

    read_timeout_s: float
    idle_timeout_s: float
    max_connections: int
    idle: dict["Connection", None] = field(default_factory=dict)


class Connection(HttpToolsProtocol):
    """A connection that ends when its client is too slow, or idles while others find no place."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._unanswered: list[RequestResponseCycle] = []  # of a client that did not wait
        self._head_bytes = 0
        self._in_head = True  # of the next request, whose first byte may not be here yet
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()
        self._start_reading()
        idle = self._limits.idle
        if len(self.connections) > self._limits.max_connections and len(idle) > 1:
            longest = next(iter(idle))
            del idle[longest]
            longest.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.idle.pop(self, None)
        self._stop_reading()
        self._stop_writing()
        self._abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            if self._reading is None and self in self._limits.idle:
                self._start_reading()
        super().data_received(data)
        if self._in_head and self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(431, f"the request's head is larger than {_MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        self._limits.idle.pop(self, None)
        self._stop_reading()
        self._head_bytes = 0
        self._in_head = False
        if self.cycle is not None and not self.cycle.response_complete:
            self._unanswered.append(self.cycle)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._stop_reading()
        if self.cycle.response_complete:  # before the body's end
            self._await_request()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        self._unanswered = [cycle for cycle in self._unanswered if not cycle.response_complete]
        super().on_response_complete()
        if self.transport.is_closing():
            self._close_soon()
        elif self.cycle.response_complete:  # else the client has sent the next request already
            if self._in_head:
                self._await_request()
            else:
                self._start_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self._writing = self.loop.call_later(self._limits.idle_timeout_s, self._check_writing)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_writing()
        if self.transport.is_closing():
            self._close_soon()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close_soon()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._close_soon()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not a valid HTTP request")

    def end(self) -> None:
        """Close after what is left to send."""
        self.transport.close()
        self._close_soon()

    @property
    def _answering(self) -> bool:
        """A request has arrived as a whole, or its answer has begun."""
        return self._in_head or self.cycle.response_started

    def _await_request(self) -> None:
        if not self.transport.is_closing():
            self._limits.idle[self] = None

    def _start_reading(self) -> None:
        """From now on what is missing of the head, or of an answered body, must arrive in time."""
        self._stop_reading()
        self._reading = self.loop.call_later(self._limits.read_timeout_s, self._end_reading)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _end_reading(self) -> None:
        if self._head_bytes:
            self._refuse(408, "the request's head did not arrive in time")
        else:
            self.end()

    def _check_writing(self) -> None:
        """The client must have read something since the last look."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes >= self._unsent_bytes:
            self.transport.abort()
            return
        self._unsent_bytes = unsent_bytes
        self._writing = self.loop.call_later(self._limits.idle_timeout_s, self._check_writing)

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _close_soon(self) -> None:
        """The transport is closing: give its last bytes a while, unless `_check_writing` does."""
        if not self.flow.write_paused:
            self._stop_writing()
            self._writing = self.loop.call_later(self._limits.idle_timeout_s, self.transport.abort)

    def _abandon(self) -> None:
        """Tell requests that nobody waits for them any more; uvicorn tells only the last one."""
        cycles = [*self._unanswered, self.cycle] if self.cycle is not None else []
        for cycle in cycles:
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()

    def _refuse(self, status: int, message: str) -> None:
        """Answer what does not become a request, and close. Nothing is put into another answer."""
        if self.cycle is None or self.cycle.response_complete or not self._answering:
            error = ErrorBody(f"{message}: send it again", "invalid_request_error", "bad_http")
            content = json.dumps({"error": error.to_dict()}).encode()
            head = [
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
                "content-type: application/json",
                f"content-length: {len(content)}",
                "connection: close",
            ]
            self.transport.write("\r\n".join([*head, "", ""]).encode() + content)
        self._abandon()
        self.end()
