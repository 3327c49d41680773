"""One worker as a process: its first model, metrics port and signals around a `ReloadingWorker`."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from prometheus_client import start_http_server

from models.manifest import BundleError, read_manifest
from service import metrics
from service.children import on_hangup
from service.endings import RETRY_S
from service.errors import QueueUnavailable
from service.jobs.connection import connect
from service.jobs.queue import JobQueue
from service.jobs.reloads import Reloads
from service.loading import LoadedModel, load_model
from service.log import configure_logging, get_logger
from service.reloading import ReloadingWorker
from service.settings import ENV_PREFIX, Settings, SettingsError
from service.tracing import start_tracing

log = get_logger(__name__)

_LOOPBACK = "127.0.0.1"


def run_worker(settings: Settings, *, index: int = 0) -> None:
    """Work until SIGTERM or SIGINT; SIGHUP reads the bundle again.

    Args:
        settings: `redis_url` is required here.
        index: of this worker among those of this machine; chooses the GPU and the metrics port.

    Raises:
        SettingsError: no Redis address, or traces are wanted and their packages are missing.
        BundleError: the bundle cannot be loaded.
        OSError: the metrics port cannot be bound.
    """
    if settings.redis_url is None:
        raise SettingsError(f"a worker needs a Redis: set {ENV_PREFIX}REDIS_URL")
    configure_logging(settings.log_level, settings.log_format)
    tracing = start_tracing(settings, "worker")
    read_manifest(settings.bundle)  # a wrong path is told before Redis is waited for
    with closing(tracing), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        start = runner.run(_find_start(settings, settings.redis_url))
        model, also = _load_first(settings, start.bundle, index)
        with _metrics_server(settings, index) as metrics_url:
            make = partial(
                ReloadingWorker,
                settings,
                model=model,
                also=also,
                answered=start.number,
                index=index,
                traces=tracing.job_traces(),
                metrics_url=metrics_url,
            )
            runner.run(_work(settings, settings.redis_url, make))


@dataclass(frozen=True)
class _Start:
    """The bundle to begin with, and the number of the latest reload that it answers."""

    bundle: Path
    number: int


async def _find_start(settings: Settings, redis_url: str) -> _Start:
    """The configured bundle, or the one that was swapped in for it while another worker lived."""
    redis = connect(redis_url)
    reloads = Reloads(redis, name=settings.queue_name)
    configured = str(settings.bundle.resolve())
    try:
        while True:
            try:
                bundle = await reloads.swapped_in(configured)
                asked = await reloads.latest()
                break
            except QueueUnavailable as error:
                log.warning("Redis does not answer", reason=str(error.__cause__))
                await asyncio.sleep(RETRY_S)
    finally:
        await redis.aclose()
    answered = asked.bundle in ("", bundle)
    return _Start(Path(bundle), asked.number if answered else asked.number - 1)


def _load_first(settings: Settings, bundle: Path, index: int) -> tuple[LoadedModel, list[str]]:
    """The model to begin with, and the names of those that it took the place of.

    Raises:
        BundleError: the configured bundle cannot be loaded, and no other was swapped in for it.
    """
    if bundle == settings.bundle.resolve():
        return load_model(settings, bundle, index), []
    try:
        model = load_model(settings, bundle, index)
    except BundleError as error:
        log.error("the bundle that was swapped in is gone", bundle=str(bundle), reason=str(error))
        return load_model(settings, settings.bundle.resolve(), index), []
    return model, [read_manifest(settings.bundle).name]


@contextmanager
def _metrics_server(settings: Settings, index: int) -> Iterator[str | None]:
    """Serve this process's metrics; the address to announce, or None.

    A configured port is for a Prometheus that knows it. A free port is known to nobody, so it is
    announced for the gateway on this machine, which shows it under its own /metrics.
    """
    port = settings.metrics_port
    host = settings.host if port else _LOOPBACK
    server, thread = start_http_server(port + index if port else 0, addr=host)
    try:
        yield None if port else f"http://{_LOOPBACK}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def _work(settings: Settings, redis_url: str, make: Callable[..., ReloadingWorker]) -> None:
    redis = connect(redis_url)
    queue = JobQueue.from_settings(redis, settings, on_dead_letter=_count_dead_letter)
    worker = make(queue=queue, reloads=Reloads(redis, name=settings.queue_name))
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, worker.drain)
    on_hangup(worker.reload)
    try:
        await worker.run()
    finally:
        await queue.close()
        await redis.aclose()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster loop where there is one; the time it takes is taken from the model."""
    if find_spec("uvloop") is None:
        return None
    import uvloop  # not on Windows

    return uvloop.new_event_loop


def _count_dead_letter(job_id: str) -> None:
    metrics.DEAD_LETTERS.inc()
    log.error("job given up after too many deliveries", job_id=job_id)
