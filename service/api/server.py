"""The gateway as a process: its socket, its signals, its shutdown."""

import asyncio
import math
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import uvicorn

from service.api.app import create_app
from service.settings import Settings

_BACKLOG = 2048


def run_gateway(settings: Settings, on_listening: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests end for `drain_timeout_s`.

    Returns after the drain, so that the caller can clean up; a second SIGINT ends it at once.

    Args:
        settings: `redis_url` is required here.
        on_listening: called with the address, `http://host:port`, once requests are answered.

    Raises:
        SettingsError: no Redis address.
        BundleError: no usable model in `settings.bundle`.
        OSError: the address cannot be bound.
    """
    GatewayServer(settings, on_listening).run_until_stopped()


class GatewayServer(uvicorn.Server):
    """Serves from one thread; any other may set `should_exit`.

    Differs from uvicorn's server in two ways: it knows its address before it starts, and it does
    not raise a caught signal anew, which would end its caller too.
    """

    def __init__(
        self, settings: Settings, on_listening: Callable[[str], None] | None = None
    ) -> None:
        config = uvicorn.Config(
            create_app(settings),
            log_config=None,
            access_log=False,
            server_header=False,
            http="httptools",
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
        )
        super().__init__(config)
        self._listener = _listen(settings.host, settings.port)
        self._on_listening = on_listening
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{self._listener.getsockname()[1]}"

    def run_until_stopped(self) -> None:
        """Serve and drain. Signals are handled if this is the main thread."""
        with (
            self._listener,
            asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner,
        ):
            runner.run(self._serve_with_signals())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self._on_listening is not None:
            self._on_listening(self.url)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    async def _serve_with_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.handle_exit, number, None)
        await self.serve(sockets=[self._listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot listen on {host}:{port}: {error.strerror}; choose another port"
        ) from None
