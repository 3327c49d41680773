"""What a job costs Redis while many workers wait for one."""

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from benchmarks.queue_costs import INFO, RESULT, put_one
from service.jobs.connection import connect
from service.jobs.queue import JobQueue
from service.tasks import end_tasks

NUM_IDLE = (4, 40, 200)
_BLOCK_MS = 500  # as in service.taking
_PLACES = 2  # of an idle worker, as one with 16 rows has
_WARM_UP = 20  # jobs
_DEADLINE_S = 10  # of one job


@dataclass(frozen=True)
class IdleCost:
    """Of a job: scripts that Redis ran, and microseconds of its thread; and jobs in a second.

    What the workers' own looks, two in a second of each, cost meanwhile is in them.
    """

    workers: int
    scripts: float
    thread_us: float
    jobs_per_s: float


async def measure_idle(url: str, workers: int, seconds: float) -> IdleCost:
    """Put a job, wait until one of so many workers has finished it, and put the next."""
    redis = connect(url, max_connections=workers + 8)
    queue = JobQueue(redis, name=uuid.uuid4().hex, max_waiting=2**20)
    await queue.open()
    ended = asyncio.Event()

    async def worker(name: str) -> None:
        while True:
            for delivery in await queue.take(name, _PLACES, _BLOCK_MS):
                await queue.finish(name, delivery, [RESULT], INFO)
                ended.set()

    async def one() -> None:
        ended.clear()
        await put_one(queue)
        async with asyncio.timeout(_DEADLINE_S):
            await ended.wait()

    tasks = [asyncio.create_task(worker(f"idle-{number}")) for number in range(workers)]
    try:
        for _ in range(_WARM_UP):
            await one()
        count, started, before = 0, time.perf_counter(), await _spent(redis)
        while time.perf_counter() - started < seconds:
            await one()
            count += 1
        elapsed_s, after = time.perf_counter() - started, await _spent(redis)
    finally:
        await end_tasks(tasks)
        await queue.close()
        await redis.aclose()
    scripts, thread_s = (end - start for start, end in zip(before, after, strict=True))
    return IdleCost(workers, scripts / count, 1e6 * thread_s / count, count / elapsed_s)


async def _spent(redis: Redis) -> tuple[float, float]:
    """Scripts that the server has run, and seconds of its processor time."""
    stats: Any = await redis.info("commandstats")
    cpu: Any = await redis.info("cpu")
    return stats["cmdstat_evalsha"]["calls"], cpu["used_cpu_user"] + cpu["used_cpu_sys"]
