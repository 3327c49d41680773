"""The gateway as a process: its socket, its signals, its shutdown."""

import asyncio
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from service.api.app import create_app
from service.api.connection import Connection, ConnectionLimits
from service.listener import listen, url_of
from service.log import get_logger
from service.settings import Settings

_OTHER_FILES = 128  # that the process needs beside its clients' connections


def run_gateway(
    settings: Settings,
    on_listening: Callable[[str], None] | None = None,
    *,
    shared_port: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests end for `drain_timeout_s`.

    Returns after the drain, so that the caller can clean up; a second SIGINT ends it at once.

    Args:
        settings: `redis_url` is required here.
        on_listening: called with the address, `http://host:port`, once requests are answered.
        shared_port: other processes answer there too.

    Raises:
        SettingsError: no Redis address.
        BundleError: no usable model in `settings.bundle`.
        OSError: the address cannot be bound.
    """
    GatewayServer(settings, on_listening, shared_port=shared_port).run_until_stopped()


class GatewayServer(uvicorn.Server):
    """Serves from one thread; any other may set `should_exit`.

    Differs from uvicorn's server in two ways: it knows its address before it starts, and it does
    not raise a caught signal anew, which would end its caller too.
    """

    def __init__(
        self,
        settings: Settings,
        on_listening: Callable[[str], None] | None = None,
        *,
        shared_port: bool = False,
    ) -> None:
        settings = settings.model_copy(update={"max_connections": _max_connections(settings)})
        limits = ConnectionLimits(
            read_timeout_s=settings.read_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            max_connections=settings.max_connections,
        )
        self._app = create_app(settings)
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            server_header=False,
            # A factory of protocols is all that uvicorn wants; its type says class.
            http=cast(Any, partial(Connection, limits=limits)),
            ws="none",
            lifespan="on",
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_keep_alive=settings.idle_timeout_s,  # type: ignore[arg-type] # any number does
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
        )
        super().__init__(config)
        self._listener = listen(settings.host, settings.port, shared=shared_port)
        self._on_listening = on_listening
        self.url = url_of(self._listener)

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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.draining.set()
        await super().shutdown(sockets=sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.state.draining.set()  # readiness ends now, the rest with the next tick
        super().handle_exit(sig, frame)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    async def _serve_with_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.handle_exit, number, None)
        await self.serve(sockets=[self._listener])


def _max_connections(settings: Settings) -> int:
    """As configured, or what the limit on open files allows, which is raised if it can be."""
    if sys.platform == "win32":
        return settings.max_connections
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + _OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft >= wanted:
        return settings.max_connections
    affordable = max(8, soft - _OTHER_FILES)
    get_logger(__name__).warning(
        "fewer connections than configured: the limit on open files is too low",
        open_files=soft,
        max_connections=affordable,
    )
    return affordable
