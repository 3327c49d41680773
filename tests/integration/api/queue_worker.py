"""A worker without a model: takes real jobs from the real queue and paints from their seeds.

Latents are the pixels, rearranged: 2x2 blocks become 12 channels, 0..255 becomes -1..1. So encode
and decode undo each other exactly, and a test knows every pixel that it should get back.
"""

import asyncio
import io
import threading
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from PIL import Image
from safetensors.numpy import load, save

from service.errors import ErrorBody
from service.jobs.connection import connect
from service.jobs.job import (
    DecodeParams,
    Delivery,
    EditParams,
    EncodeParams,
    GenerateParams,
    Job,
)
from service.jobs.queue import JobQueue
from service.settings import Settings

NAME = "painter"
IMAGE_SIZE = (32, 32)
LATENT_SHAPE = (12, 16, 16)
TIMINGS_S = {"queue": 0.001, "prefill": 0.002, "denoise": 0.25, "decode": 0.003}
_ANNOUNCED_S = 30
_STEP_S = 0.005


def paint(seed: int) -> np.ndarray:
    """uint8 (3, H, W): the picture that a seed gives."""
    return np.random.default_rng(seed).integers(0, 256, (3, *IMAGE_SIZE), dtype=np.uint8)


def paint_preview(seed: int, index: int) -> np.ndarray:
    """uint8 (3, H, W): the picture darkened, the less the later the preview."""
    return paint(seed) >> (3 - index)


def to_latents(images: np.ndarray) -> np.ndarray:
    """uint8 (B, 3, H, W) to float32 (B, 12, H/2, W/2)."""
    batch, channels, height, width = images.shape
    blocks = images.reshape(batch, channels, height // 2, 2, width // 2, 2)
    blocks = blocks.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, height // 2, width // 2)
    return blocks.astype(np.float32) / 127.5 - 1


def to_images(latents: np.ndarray) -> np.ndarray:
    """The inverse of `to_latents`."""
    batch, channels, height, width = latents.shape
    blocks = latents.reshape(batch, channels // 4, 2, 2, height, width)
    values = blocks.transpose(0, 1, 4, 2, 5, 3).reshape(batch, -1, 2 * height, 2 * width)
    with np.errstate(over="ignore"):
        return ((values + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def to_file(pixels: np.ndarray, file_type: str) -> bytes:
    """One picture (3, H, W) as a lossless file; jpeg as good as it gets."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, file_type, quality=100, lossless=True)
    return buffer.getvalue()


class QueueWorker:
    """Runs in a thread of its own while the context lasts.

    Attributes:
        jobs: every job it was handed, in order.
        cancelled: ids of the jobs that were cancelled while it held them.
        paused: while set, jobs stay unfinished.
        error: given to every job instead of a result.
        outputs: given to every job instead of true ones.
        previews: numbers of the previews to publish, in this order; None: those asked for.
    """

    def __init__(self, redis_url: str, queue_name: str, model: str, **queue_options: Any) -> None:
        self.jobs: list[Job] = []
        self.cancelled: set[str] = set()
        self.paused = threading.Event()
        self.error: ErrorBody | None = None
        self.outputs: list[bytes] | None = None
        self.previews: list[int] | None = None
        self._redis_url = redis_url
        self._queue_name = queue_name
        self._model = model
        self._queue_options = queue_options
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(timeout=20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        redis = connect(self._redis_url)
        queue = JobQueue(redis, name=self._queue_name, **self._queue_options)
        await queue.open()
        running: set[asyncio.Task[None]] = set()
        while not self._stopping.is_set():
            await queue.announce(NAME, {"model": self._model, "backend": "double"}, _ANNOUNCED_S)
            self._ready.set()
            for delivery in await queue.take(NAME, 64, 20):
                self.jobs.append(delivery.job)
                running.add(asyncio.create_task(self._work(queue, delivery)))
            running = {task for task in running if not task.done() or task.result()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await queue.announce(NAME, {}, 0)
        await queue.close()
        await redis.aclose()

    async def _work(self, queue: JobQueue, delivery: Delivery) -> None:
        job = delivery.job
        await self._publish_previews(queue, job)
        while self.paused.is_set():
            if await queue.cancelled([job.id]):
                self.cancelled.add(job.id)
                await queue.finish_cancelled(NAME, delivery)
                return
            await asyncio.sleep(_STEP_S)
        if self.error is not None:
            await queue.fail(NAME, delivery, self.error)
            return
        info: dict[str, Any] = {"timings_s": TIMINGS_S, "worker": NAME, "num_deliveries": 1}
        outputs = self.outputs or _outputs(job, delivery.payload)
        await queue.finish(NAME, delivery, outputs, info)

    async def _publish_previews(self, queue: JobQueue, job: Job) -> None:
        if not isinstance(job.params, GenerateParams):
            return
        asked = range(job.params.partial_images)
        for index in asked if self.previews is None else self.previews:
            data = {"index": index, "step": index + 1, "num_steps": job.params.steps}
            picture = to_file(paint_preview(job.params.seed, index), job.params.output_format)
            await queue.publish(job.id, "preview", data, picture)


def ask_queue(settings: Settings, question: Callable[[JobQueue], Any]) -> Any:
    """The answer of an asynchronous call on the gateway's queue."""

    async def ask() -> Any:
        assert settings.redis_url is not None
        redis = connect(settings.redis_url)
        queue = JobQueue(redis, name=settings.queue_name)
        try:
            return await question(queue)
        finally:
            await queue.close()
            await redis.aclose()

    return asyncio.run(ask())


def _outputs(job: Job, payload: bytes | None) -> list[bytes]:
    arrays = load(payload) if payload else {}
    match job.params:
        case EditParams(output_format=file_type):
            source = arrays["images"][0]
            mask = arrays["mask"][0] if "mask" in arrays else np.full_like(source[:1], 255)
            return [to_file(np.where(mask, 255 - source, source), file_type)]
        case GenerateParams(output_format=file_type, seed=seed):
            return [to_file(paint(seed), file_type)]
        case EncodeParams(sample=sample, seed=seed):
            mean = to_latents(arrays["images"])
            noise = np.random.default_rng(seed).standard_normal(mean.shape, dtype=np.float32)
            drawn = mean + noise if sample else mean
            return [save({"latents": drawn, "mean": mean, "logvar": np.zeros_like(mean)})]
        case DecodeParams(output_format="tensor"):
            return [save({"images": to_images(arrays["latents"])})]
        case DecodeParams(output_format=file_type):
            return [to_file(image, file_type) for image in to_images(arrays["latents"])]
