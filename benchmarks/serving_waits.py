"""What passes while the model does nothing: milliseconds of a request, steps of waiting."""

import asyncio
import random
import statistics
import time
import uuid

from benchmarks.serving_load import GENERATE_ONLY, LoadClient, percentile, plan_requests
from benchmarks.serving_processes import QUEUE, RunningService
from models.manifest import Manifest
from service.jobs.connection import connect
from service.jobs.job import GenerateParams, Job
from service.jobs.queue import JobQueue

STEP_S = 0.05  # of the fake backend, where steps are counted
NUM_WAITS = 20
NUM_NULL_REQUESTS = 300


async def measure_overhead(service: RunningService, manifest: Manifest) -> dict[str, float]:
    """Milliseconds of requests one after another for which the model does nothing."""
    plan = plan_requests([0.0] * NUM_NULL_REQUESTS, (1,), GENERATE_ONLY, random.Random(12))
    async with LoadClient(service.url, manifest) as client:
        for planned in plan[:50]:
            await client.send(planned, time.perf_counter())
        floor_s = await client.floor_s(NUM_NULL_REQUESTS)
        times = [(await client.send(one, time.perf_counter())).latency_s for one in plan]
    return {
        "median_ms": 1000 * statistics.median(times),
        "p99_ms": 1000 * percentile(times, 0.99),
        "floor_ms": 1000 * floor_s,
    }


def make_job(model: str, steps: int, guidance_scale: float = 1.0) -> Job:
    """With guidance it has 2 model rows, without 1."""
    return Job(
        id=uuid.uuid4().hex,
        task="generate",
        model=model,
        params=GenerateParams(
            prompt="a red circle", seed=1, steps=steps, guidance_scale=guidance_scale
        ),
        created_at=time.time(),
    )


async def first_step_at(queue: JobQueue, job: Job) -> float:
    """When a job's first step began, in Unix seconds, told from the news of a step's end."""
    async for event in queue.events(job.id):
        if event.kind == "progress":
            return int(event.id.split("-")[0]) / 1000 - STEP_S * event.data["step"]
    raise RuntimeError("the job ended without progress")


async def measure_waits(service: RunningService, model: str) -> dict[str, list[float]]:
    """Steps that pass, by the queue alone; the service has room for 3 rows.

    join_steps: from a job's arrival to its first step, beside a job that leaves rows free;
    cancel_steps: from the cancelling of a job to the first step of one that waited for its rows.
    """
    redis = connect(service.redis_url)
    queue = JobQueue(redis, name=QUEUE)
    source = random.Random(13)
    found: dict[str, list[float]] = {"join_steps": [], "cancel_steps": []}

    async def end(*jobs: Job) -> None:
        for job in jobs:
            await queue.cancel(job.id)
            await queue.wait(job.id, 60)

    for _ in range(NUM_WAITS):
        running, joining = make_job(model, 1000), make_job(model, 1000)
        await queue.put([running])
        await first_step_at(queue, running)
        await asyncio.sleep(source.uniform(0, STEP_S))
        arrived_at = time.time()
        await queue.put([joining])
        found["join_steps"].append((await first_step_at(queue, joining) - arrived_at) / STEP_S)
        await end(running, joining)

        running, waiting = make_job(model, 1000, 3.0), make_job(model, 1000, 3.0)
        await queue.put([running, waiting])
        await first_step_at(queue, running)
        await asyncio.sleep(source.uniform(0, STEP_S))
        cancelled_at = time.time()
        await queue.cancel(running.id)
        found["cancel_steps"].append((await first_step_at(queue, waiting) - cancelled_at) / STEP_S)
        await end(running, waiting)
    await queue.close()
    await redis.aclose()
    return found
