"""Several gateway processes that answer on one port."""

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import httpx

from models.manifest import read_manifest
from service.children import Child, Children
from service.listener import reserve, url_of
from service.settings import ENV_PREFIX, Settings, SettingsError
from service.shared_metrics import DIRECTORY_VARIABLE, share_metrics

_POLL_S = 0.1


class GatewayProcesses:
    """Children that share a port, among which the system deals out new clients.

    While one of them is started again the others answer.

    Attributes:
        url: their address.
        children: to be kept alive.
    """

    def __init__(self, settings: Settings, reserved: socket.socket, metrics_directory: str) -> None:
        self.url = url_of(reserved)
        self._settings = settings
        self._port = reserved.getsockname()[1]
        several = settings.gateway_processes > 1
        self.children = [
            Child(
                f"gateway {index}",
                partial(self._arguments, index),
                environment={DIRECTORY_VARIABLE: metrics_directory} if several else {},
            )
            for index in range(settings.gateway_processes)
        ]

    @property
    def local_url(self) -> str:
        """Where this machine reaches them."""
        url = self.url
        for everywhere in ("//0.0.0.0:", "//[::]:"):
            url = url.replace(everywhere, "//127.0.0.1:")
        return url

    def _arguments(self, index: int) -> Sequence[str]:
        settings = self._settings
        assert settings.redis_url is not None
        return [
            *("gateway", "--redis-url", settings.redis_url),
            *("--bundle", str(settings.bundle.resolve())),
            *("--host", settings.host, "--port", str(self._port)),
            *("--index", str(index)),
        ]


@contextmanager
def gateway_processes(settings: Settings) -> Iterator[GatewayProcesses]:
    """Their port and their counters, for as long as the context lasts.

    Raises:
        OSError: the address cannot be bound.
    """
    with (
        reserve(settings.host, settings.port) as reserved,
        tempfile.TemporaryDirectory(prefix="rpiae-metrics-") as metrics_directory,
    ):
        yield GatewayProcesses(settings, reserved, metrics_directory)


def run(settings: Settings, on_listening: Callable[[str], None], index: int | None = None) -> None:
    """Serve with `settings.gateway_processes` until SIGTERM or SIGINT, then let requests end.

    Args:
        settings: `redis_url` is required here.
        on_listening: called with the address once requests are answered.
        index: this is one of the processes, the parent has its port.

    Raises:
        BundleError: no usable model in `settings.bundle`.
        SettingsError: the gateways cannot run with these settings.
        OSError: the address cannot be bound.
    """
    if index is not None and DIRECTORY_VARIABLE in os.environ:
        share_metrics(index)  # before the next import makes any
    if index is not None or settings.gateway_processes == 1:
        from service.api.server import run_gateway

        run_gateway(settings, on_listening, shared_port=index is not None)
        return
    if settings.redis_url is None:
        raise SettingsError(f"a gateway needs a Redis: set {ENV_PREFIX}REDIS_URL")
    settings.check_exposure()
    read_manifest(settings.bundle)
    with gateway_processes(settings) as processes:
        asyncio.run(_run(settings, processes, on_listening))


async def _run(
    settings: Settings, processes: GatewayProcesses, on_listening: Callable[[str], None]
) -> None:
    children = Children(settings)
    children.stop_on_signals()
    tasks = [asyncio.create_task(children.keep(child)) for child in processes.children]
    tasks.append(asyncio.create_task(_tell(children, processes, on_listening)))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        children.stopping.set()
        await children.stop(processes.children)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _tell(
    children: Children, processes: GatewayProcesses, on_listening: Callable[[str], None]
) -> None:
    await answered(f"{processes.local_url}/healthz")
    on_listening(processes.url)
    await children.stopping.wait()


async def answered(url: str) -> None:
    """Wait until a GET of this address succeeds."""
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            with suppress(httpx.HTTPError):
                if (await client.get(url)).status_code == httpx.codes.OK:
                    return
            await asyncio.sleep(_POLL_S)
