"""One worker as a process: model, metrics port and signals around a `Worker`."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec

import torch
from prometheus_client import start_http_server

from models.manifest import BundleError, Manifest, read_manifest
from service import metrics
from service.backends.base import Backend, Limits
from service.backends.fake_backend import FakeBackend
from service.backends.torch_backend import TorchBackend
from service.cpu_count import cpu_count
from service.engine.calibration import Calibration, calibrate
from service.jobs.connection import connect
from service.jobs.queue import JobQueue
from service.log import configure_logging, get_logger
from service.settings import ENV_PREFIX, Settings, SettingsError
from service.worker import Worker

log = get_logger(__name__)

_LOOPBACK = "127.0.0.1"
_CALIBRATION_S = 0.6
_FAKE_ROWS, _FAKE_IMAGES = 16, 4


def run_worker(settings: Settings, *, index: int = 0) -> None:
    """Work until SIGTERM or SIGINT.

    Args:
        settings: `redis_url` is required here.
        index: of this worker among those of this machine; chooses the GPU and the metrics port.

    Raises:
        SettingsError: no Redis address.
        BundleError: the bundle cannot be loaded.
        OSError: the metrics port cannot be bound.
    """
    if settings.redis_url is None:
        raise SettingsError(f"a worker needs a Redis: set {ENV_PREFIX}REDIS_URL")
    configure_logging(settings.log_level)
    manifest = read_manifest(settings.bundle)
    backend = load_backend(settings, manifest, index)
    backend.warm_up((1,))
    calibration = calibrate(backend, max_rows=settings.max_rows, limit_s=_CALIBRATION_S)
    log.info("backend measured", **asdict(calibration))
    metrics.MODEL.info({"name": manifest.name, "licence": manifest.licence})
    metrics.BACKEND_WORKERS.labels(backend.name).set(1)
    with (
        _metrics_server(settings, index) as metrics_url,
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
    ):
        runner.run(_work(settings, settings.redis_url, manifest, backend, calibration, metrics_url))


def load_backend(settings: Settings, manifest: Manifest, index: int = 0) -> Backend:
    """The runtime that the settings ask for, with the bundle's model.

    Raises:
        BundleError: the bundle is incomplete, altered or does not fit its manifest; or onnxruntime
            is asked for and cannot serve it.
    """
    if settings.backend == "fake":
        limits = Limits(
            image_size=manifest.image_size,
            latent_shape=manifest.latent_shape,
            max_rows=settings.max_rows or _FAKE_ROWS,
            max_images=_FAKE_IMAGES,
            other_sizes=manifest.other_sizes,
        )
        return FakeBackend(
            limits,
            step_seconds={1: settings.fake_step_s},
            fatal=settings.fake_fatal_prompt,
        )
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{index % torch.cuda.device_count()}"
    threads = settings.threads or max(1, cpu_count() // settings.workers)
    if settings.backend == "onnxruntime" or (settings.backend == "auto" and manifest.exports):
        try:
            return _load_onnx(settings, manifest, device, threads)
        except BundleError as error:
            if settings.backend == "onnxruntime":
                raise
            log.warning("onnxruntime is not used, PyTorch is", reason=str(error))
    return TorchBackend.load(
        settings.bundle, device=device, threads=threads, max_rows=settings.max_rows
    )


def _load_onnx(settings: Settings, manifest: Manifest, device: str, threads: int) -> Backend:
    if find_spec("onnxruntime") is None:
        raise BundleError("onnxruntime is not installed: install rpiae[onnxruntime]")
    # Not everybody has it.
    from service.backends.onnx_backend import OnnxBackend

    backend = OnnxBackend.load(
        settings.bundle,
        manifest,
        precision=settings.precision,
        device=device,
        threads=threads,
        max_rows=settings.max_rows,
    )
    log.info("the bundle's export is used", backend=backend.name)
    return backend


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


async def _work(
    settings: Settings,
    redis_url: str,
    manifest: Manifest,
    backend: Backend,
    calibration: Calibration,
    metrics_url: str | None,
) -> None:
    redis = connect(redis_url)
    queue = JobQueue.from_settings(redis, settings, on_dead_letter=_count_dead_letter)
    worker = Worker(
        settings, queue, backend, manifest, calibration=calibration, metrics_url=metrics_url
    )
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, worker.drain)
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
