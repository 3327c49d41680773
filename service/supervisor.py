"""`rpiae serve`: a private Redis if none is configured, workers and a gateway, kept alive together.

A child that dies is started again; children end with this process, however it ends.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType

import httpx

from models.manifest import read_manifest
from service.jobs.embedded import EmbeddedRedis, bound_to_parent
from service.log import configure_logging, get_logger
from service.settings import Settings, SettingsError

log = get_logger(__name__)

UNUSABLE = 2  # a child's exit status: wrong settings or files, which no restart mends
_POLL_S = 0.1
_MAX_BACKOFF_S = 10.0
_STABLE_S = 30.0  # who lived this long and dies is started again at once
_KILL_AFTER_S = 5.0  # beyond a drain's limit


def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends it without waiting for running jobs.

    Args:
        settings: `redis_url` None starts a private Redis.
        on_ready: called once with the address, when a request would be answered.

    Raises:
        BundleError: no usable bundle.
        SettingsError: the gateway, a worker or the private Redis cannot run with these settings.
    """
    configure_logging(settings.log_level)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    read_manifest(settings.bundle)
    with ExitStack() as stack:
        redis = None
        if settings.redis_url is None:
            redis = stack.enter_context(_private_redis())
            settings = settings.model_copy(update={"redis_url": redis.url})
        asyncio.run(_supervise(settings, redis, on_ready))


def _private_redis() -> EmbeddedRedis:
    redis = EmbeddedRedis()
    try:
        redis.start()
    except RuntimeError as error:
        raise SettingsError(str(error)) from None
    return redis


async def _supervise(
    settings: Settings, redis: EmbeddedRedis | None, on_ready: Callable[[str], None]
) -> None:
    await Supervisor(settings, redis, on_ready).run()


@dataclass
class Child:
    """One process to keep alive; `command` is asked anew for each start."""

    name: str
    command: Callable[[], list[str]]
    process: asyncio.subprocess.Process | None = None


class Supervisor:
    """Starts children, restarts those that die, stops all of them in order.

    Args:
        settings: with the address of a Redis.
        redis: the private one to look after, or None.
        on_ready: called once with the gateway's address.
    """

    def __init__(
        self, settings: Settings, redis: EmbeddedRedis | None, on_ready: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._on_ready = on_ready
        self._port = settings.port  # once the gateway listens, the one it has
        self._address: asyncio.Future[str] = asyncio.Future()
        self._gateway = Child("gateway", self._gateway_command)
        self._workers = [
            Child(f"worker {index}", partial(self._worker_command, index))
            for index in range(settings.workers)
        ]
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Serve until a signal comes.

        Raises:
            SettingsError: a child cannot run with these settings.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        tasks = [asyncio.create_task(self._keep(child)) for child in self._children]
        tasks.append(asyncio.create_task(self._keep_redis()))
        tasks.append(asyncio.create_task(self._tell_when_ready()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._stopping.set()
            await self._stop([self._gateway])  # its last requests still need the workers
            await self._stop(self._workers)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _children(self) -> list[Child]:
        return [self._gateway, *self._workers]

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def _gateway_command(self) -> list[str]:
        return self._command("gateway", "--host", self._settings.host, "--port", str(self._port))

    def _worker_command(self, index: int) -> list[str]:
        workers = str(self._settings.workers)
        return self._command("worker", "--index", str(index), "--workers", workers)

    def _command(self, command: str, *options: str) -> list[str]:
        redis_url, bundle = self._settings.redis_url, self._settings.bundle.resolve()
        assert redis_url is not None
        return bound_to_parent(
            [
                *(sys.executable, "-m", "service.cli", command),
                *("--redis-url", redis_url, "--bundle", str(bundle)),
                *options,
            ]
        )

    async def _keep(self, child: Child) -> None:
        """Run a child again and again, until we stop.

        Raises:
            SettingsError: it says that it cannot run with these settings.
        """
        backoff_s = 0.0
        while not self._stopping.is_set():
            started = time.monotonic()
            status = await self._run_once(child)
            if self._stopping.is_set():
                return
            if status == UNUSABLE:
                raise SettingsError(f"{child.name} cannot run with these settings, see above")
            lived_s = time.monotonic() - started
            backoff_s = 0.0 if lived_s > _STABLE_S else min(_MAX_BACKOFF_S, 2 * backoff_s + 0.1)
            log.warning("restarting", child=child.name, status=status, backoff_s=backoff_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)

    async def _run_once(self, child: Child) -> int:
        """Exit status of one life."""
        child.process = await asyncio.create_subprocess_exec(
            *child.command(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            # A Ctrl-C in the terminal is for us: children are stopped in their order.
            start_new_session=True,
        )
        if self._stopping.is_set():
            child.process.terminate()
        assert child.process.stdout is not None
        async for line in child.process.stdout:
            if child is self._gateway:
                self._learn_address(line.decode().strip())
        return await child.process.wait()

    def _learn_address(self, address: str) -> None:
        """The gateway writes one line: where it listens. It keeps the port over restarts."""
        self._port = int(address.rsplit(":", 1)[1])
        if not self._address.done():
            for everywhere in ("//0.0.0.0:", "//[::]:"):
                address = address.replace(everywhere, "//127.0.0.1:")
            self._address.set_result(address)

    async def _tell_when_ready(self) -> None:
        """Tell the address once a request would be answered; ends when we stop."""
        address = await self._address
        async with httpx.AsyncClient(trust_env=False) as client:
            while not await _is_ready(client, address):
                await asyncio.sleep(_POLL_S)
        self._on_ready(address)
        await self._stopping.wait()

    async def _keep_redis(self) -> None:
        """Look after the private Redis; what it held is lost with it, its address is not."""
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _POLL_S)
            if self._redis is not None and self._redis.pid is None:
                log.error("the private Redis ended: starting another; waiting jobs are lost")
                self._redis.start()

    async def _stop(self, children: Sequence[Child]) -> None:
        """Ask children to end, wait for their drain, then insist."""
        alive = [
            child.process
            for child in children
            if child.process is not None and child.process.returncode is None
        ]
        for process in alive:
            with suppress(ProcessLookupError):
                process.terminate()
        waits = [asyncio.create_task(process.wait()) for process in alive]
        if not waits:
            return
        hurry = asyncio.create_task(self._hurry.wait())
        everyone = asyncio.gather(*waits)
        await asyncio.wait(
            (hurry, everyone),
            timeout=self._settings.drain_timeout_s + _KILL_AFTER_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        for process in alive:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
        await everyone
        hurry.cancel()


async def _is_ready(client: httpx.AsyncClient, address: str) -> bool:
    try:
        return (await client.get(f"{address}/readyz")).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)  # unwinds, so that what was started is stopped
