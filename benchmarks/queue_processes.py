"""Several client processes at one queue: what its server does at most.

One process that puts, takes and finishes is slower than Redis; with more of them Redis's one thread
becomes the limit, as long as there are cores for all.
"""

import asyncio
import multiprocessing
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from benchmarks.queue_costs import INFO, RESULT, put_one
from service.jobs.connection import connect
from service.jobs.queue import JobQueue

LOOPS = 16  # of each process, each with a connection
_WARM_UP_S = 0.5
_LOOK_EVERY_S = 0.02


@dataclass(frozen=True)
class Saturation:
    """Jobs per second of all processes, and the share of the time that Redis's thread was busy."""

    processes: int
    jobs_per_s: float
    redis_share: float


def saturate(url: str, processes: int, seconds: float) -> Saturation:
    """Put, take and finish for so long from so many processes, each in `LOOPS` loops."""
    name = uuid.uuid4().hex
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_client, url, name, seconds) for _ in range(processes)]
        share = asyncio.run(_start(url, name, processes, seconds))
        count = sum(future.result() for future in futures)
    return Saturation(processes, count / seconds, share)


def _client(url: str, name: str, seconds: float) -> int:
    return asyncio.run(_loops(url, name, seconds))


async def _start(url: str, name: str, processes: int, seconds: float) -> float:
    """Begin when all processes are ready; returns the server's share of the time."""
    async with Redis.from_url(url) as redis:
        while int(await redis.get(f"{name}:ready") or 0) < processes:
            await asyncio.sleep(_LOOK_EVERY_S)
        await redis.set(f"{name}:starts_at", time.time())
        await asyncio.sleep(_WARM_UP_S)
        began, before = time.perf_counter(), await _busy_s(redis)
        await asyncio.sleep(seconds)
        return (await _busy_s(redis) - before) / (time.perf_counter() - began)


async def _loops(url: str, name: str, seconds: float) -> int:
    """Jobs that this process finished after the warm-up."""
    redis = connect(url, max_connections=LOOPS)
    queue = JobQueue(redis, name=name, max_waiting=2**20)
    await queue.open()
    await redis.incr(f"{name}:ready")
    while (start := await redis.get(f"{name}:starts_at")) is None:
        await asyncio.sleep(_LOOK_EVERY_S)
    counts_from = float(start) + _WARM_UP_S
    worker = uuid.uuid4().hex
    finished = 0

    async def loop(number: int) -> None:
        nonlocal finished
        while time.time() < counts_from + seconds:
            await put_one(queue)
            for delivery in await queue.take(f"{worker}-{number}", 1, 0):
                await queue.finish(f"{worker}-{number}", delivery, [RESULT], INFO)
                finished += counts_from < time.time() < counts_from + seconds

    await asyncio.gather(*(loop(number) for number in range(LOOPS)))
    await queue.close()
    await redis.aclose()
    return finished


async def _busy_s(redis: Redis) -> float:
    cpu: Any = await redis.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])
