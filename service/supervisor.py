"""`rpiae serve`: a private Redis if none is configured, workers and gateways, kept alive."""

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from types import FrameType

from models.manifest import read_manifest
from service.children import Child, Children, on_hangup
from service.errors import QueueUnavailable
from service.gateways import GatewayProcesses, answered, gateway_processes
from service.jobs.connection import connect
from service.jobs.embedded import EmbeddedRedis
from service.jobs.reloads import Reloads
from service.log import configure_logging, get_logger
from service.settings import Settings, SettingsError

log = get_logger(__name__)

_POLL_S = 0.1


def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends it without waiting for running jobs.

    SIGHUP has the workers read the bundle again.

    Args:
        settings: `redis_url` None starts a private Redis.
        on_ready: called once with the address, when a request would be answered.

    Raises:
        BundleError: no usable bundle.
        SettingsError: the gateway, a worker or the private Redis cannot run with these settings.
        OSError: the address cannot be bound.
    """
    settings.check_exposure()
    configure_logging(settings.log_level, settings.log_format)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    read_manifest(settings.bundle)
    with ExitStack() as stack:
        redis = None
        if settings.redis_url is None:
            redis = stack.enter_context(_private_redis())
            settings = settings.model_copy(update={"redis_url": redis.url})
        gateways = stack.enter_context(gateway_processes(settings))
        asyncio.run(Supervisor(settings, redis, gateways, on_ready).run())


def _private_redis() -> EmbeddedRedis:
    redis = EmbeddedRedis()
    try:
        redis.start()
    except RuntimeError as error:
        raise SettingsError(str(error)) from None
    return redis


class Supervisor:
    """Starts workers and gateways, restarts those that die, stops all of them in order.

    Args:
        settings: with the address of a Redis.
        redis: the private one to look after, or None.
        gateways: to be started.
        on_ready: called once with the gateways' address.
    """

    def __init__(
        self,
        settings: Settings,
        redis: EmbeddedRedis | None,
        gateways: GatewayProcesses,
        on_ready: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._gateways = gateways
        self._on_ready = on_ready
        self._children = Children(settings)
        self._asking: set[asyncio.Task[None]] = set()
        self._workers = [
            Child(f"worker {index}", partial(self._worker_arguments, index))
            for index in range(settings.workers)
        ]

    async def run(self) -> None:
        """Serve until a signal comes.

        Raises:
            SettingsError: a child cannot run with these settings.
        """
        children = self._children
        children.stop_on_signals()
        on_hangup(self._reload)
        everyone = [*self._gateways.children, *self._workers]
        tasks = [asyncio.create_task(children.keep(child)) for child in everyone]
        tasks.append(asyncio.create_task(self._keep_redis()))
        tasks.append(asyncio.create_task(self._tell_when_ready()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            children.stopping.set()
            await children.stop(self._gateways.children)  # their requests still need the workers
            await children.stop(self._workers)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _reload(self) -> None:
        task = asyncio.create_task(_ask_reload(self._settings))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def _worker_arguments(self, index: int) -> list[str]:
        settings = self._settings
        assert settings.redis_url is not None
        return [
            *("worker", "--redis-url", settings.redis_url),
            *("--bundle", str(settings.bundle.resolve())),
            *("--index", str(index), "--workers", str(settings.workers)),
        ]

    async def _tell_when_ready(self) -> None:
        """Tell the address once a request would be answered; ends when we stop."""
        await answered(f"{self._gateways.local_url}/readyz")
        self._on_ready(self._gateways.local_url)
        await self._children.stopping.wait()

    async def _keep_redis(self) -> None:
        """Look after the private Redis; what it held is lost with it, its address is not."""
        stopping = self._children.stopping
        while not stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _POLL_S)
            if self._redis is not None and self._redis.pid is None:
                log.error("the private Redis ended: starting another; waiting jobs are lost")
                self._redis.start()


async def _ask_reload(settings: Settings) -> None:
    """Have every worker of the queue read its bundle again."""
    assert settings.redis_url is not None
    redis = connect(settings.redis_url)
    try:
        await Reloads(redis, name=settings.queue_name).ask()
    except QueueUnavailable as error:
        log.error("bundles are not loaded again: Redis does not answer", reason=error.message)
    finally:
        await redis.aclose()


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)  # unwinds, so that what was started is stopped
