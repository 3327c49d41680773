"""Redis answers nobody for a while: calls end in time, no lease is lost, no job is left behind."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from service.errors import QueueUnavailable
from service.jobs.connection import connect
from service.jobs.job import Job
from service.jobs.queue import JobQueue
from tests.integration.jobs.servers import RedisProcess

MakeJob = Callable[..., Job]

TIMEOUT_S = 0.3
LONGEST_CALL_S = 8  # connecting and calling: two seconds of repeats each, and their last attempts


@pytest_asyncio.fixture
async def impatient(server: RedisProcess) -> AsyncIterator[Redis]:
    redis = connect(f"{server.url}?socket_timeout={TIMEOUT_S}")
    yield redis
    await redis.aclose()


@pytest_asyncio.fixture
async def stallable(impatient: Redis, queue_name: str) -> AsyncIterator[JobQueue]:
    queue = JobQueue(impatient, name=queue_name, lease_s=1)
    await queue.open()
    yield queue
    await queue.close()


async def test_every_call_ends_while_redis_does_not_answer(
    stallable: JobQueue, server: RedisProcess, make_job: MakeJob
) -> None:
    queue = stallable
    job = make_job()
    await queue.put([job, make_job()])
    [delivery] = await queue.take("w", 1, 0)
    waiting = asyncio.create_task(queue.wait(job.id, 50))
    server.stall()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "renew": lambda: queue.renew("w", [delivery]),
        "take": lambda: queue.take("w", 1, 1000),
        "put": lambda: queue.put([make_job()]),
        "finish": lambda: queue.finish("w", delivery, [], {}),
        "job": lambda: queue.job(job.id),
        "depth": queue.depth,
    }

    async def measure(call: Callable[[], Awaitable[object]]) -> float:
        started = time.monotonic()
        with pytest.raises(QueueUnavailable):
            await call()
        return time.monotonic() - started

    times = dict(zip(calls, await asyncio.gather(*map(measure, calls.values())), strict=True))
    assert {name: s for name, s in times.items() if s > LONGEST_CALL_S} == {}
    assert not await queue.ping()

    server.go_on()
    assert await queue.finish("w", delivery, [], {})
    assert (await waiting).outputs == []


async def test_a_stall_longer_than_the_lease_takes_no_job_from_a_live_worker(
    stallable: JobQueue, server: RedisProcess, make_job: MakeJob, impatient: Redis
) -> None:
    queue = stallable
    await queue.put([make_job()])
    [delivery] = await queue.take("holder", 1, 0)
    server.stall()
    await asyncio.sleep(2.3)
    server.go_on()

    assert await queue.take("other", 1, 0) == []  # comes before the holder's renewal
    assert await queue.renew("holder", [delivery]) == set()
    assert await queue.take("other", 1, 0) == []
    assert await queue.finish("holder", delivery, [], {})


async def test_the_job_of_a_worker_that_died_in_a_stall_is_handed_on(
    stallable: JobQueue,
    server: RedisProcess,
    make_job: MakeJob,
    eventually: Callable[..., Awaitable[None]],
) -> None:
    queue = stallable
    await queue.put([make_job()])
    [delivery] = await queue.take("dead", 1, 0)
    server.stall()
    await asyncio.sleep(2.3)
    server.go_on()

    handed_on = []

    async def taken() -> bool:
        handed_on.extend(await queue.take("alive", 1, 0))
        return bool(handed_on)

    await eventually(taken)
    assert handed_on[0].job == delivery.job
    assert handed_on[0].num_deliveries == 2


@pytest.mark.parametrize("cancelled", [False, True])
async def test_jobs_whose_reply_got_lost_come_with_the_next_take(
    stallable: JobQueue, server: RedisProcess, make_job: MakeJob, cancelled: bool
) -> None:
    queue = stallable
    jobs = [make_job(), make_job(priority="batch"), make_job()]
    assert await queue.take("w", 1, 0) == []  # so that Redis has the script
    await queue.put(jobs, {job.id: b"source" for job in jobs})
    server.stall()
    taking = asyncio.create_task(queue.take("w", 2, 0))
    if cancelled:
        await asyncio.sleep(TIMEOUT_S / 3)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
    else:
        with pytest.raises(QueueUnavailable):
            await taking
    server.go_on()

    again = await queue.take("w", 2, 0)
    rest = await queue.take("w", 2, 0)

    assert [d.job.id for d in again + rest] == [jobs[0].id, jobs[2].id, jobs[1].id]
    assert {(d.num_deliveries, d.payload) for d in again + rest} == {(1, b"source")}
    for delivery in again + rest:
        assert await queue.finish("w", delivery, [], {})


async def test_a_lost_reply_hands_out_nothing_that_has_ended_or_is_another_s(
    stallable: JobQueue, server: RedisProcess, make_job: MakeJob
) -> None:
    queue = stallable
    await queue.put([make_job() for _ in range(2)])
    ended, kept = await queue.take("w", 2, 0)
    await queue.finish("w", ended, [], {})
    await queue.give_back("w", [kept])
    queue._unanswered["w"] = [call async for call in last_call(queue, "w")]

    [taken] = await queue.take("w", 5, 0)
    assert taken.job == kept.job


async def last_call(queue: JobQueue, worker: str) -> AsyncIterator[str]:
    stored = await queue._redis.hget(f"{queue._root}:takes", worker)
    yield stored.decode().split()[0]


async def test_short_stalls_under_load_lose_and_double_nothing(
    stallable: JobQueue, server: RedisProcess, queue_name: str, make_job: MakeJob
) -> None:
    jobs = [make_job(owner=str(i % 3)) for i in range(36)]
    await stallable.put(jobs)
    ended: Counter[str] = Counter()

    async def work(name: str) -> None:
        redis = connect(f"{server.url}?socket_timeout={TIMEOUT_S}")
        queue = JobQueue(redis, name=queue_name, lease_s=60)
        while sum(ended.values()) < len(jobs):
            try:
                deliveries = await queue.take(name, 2, 20)
                for delivery in deliveries:
                    assert await patiently(lambda d=delivery: queue.finish(name, d, [], {}))
                    ended[delivery.job.id] += 1
            except QueueUnavailable:
                continue
        await queue.close()
        await redis.aclose()

    async def patiently(call: Callable[[], Awaitable[bool]]) -> bool:
        while True:
            try:
                return await call()
            except QueueUnavailable:
                continue

    async def disturb() -> None:
        while sum(ended.values()) < len(jobs):
            await asyncio.sleep(0.02)
            server.stall()
            await asyncio.sleep(2 * TIMEOUT_S)
            server.go_on()

    disturbing = asyncio.create_task(disturb())
    await asyncio.gather(*(work(f"w{i}") for i in range(3)))
    await disturbing

    assert ended == Counter(job.id for job in jobs)
