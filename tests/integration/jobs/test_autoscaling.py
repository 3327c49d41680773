"""What an autoscaler reads: the length of a stream is what waits and what runs."""

import time
from collections.abc import Callable

from redis.asyncio import Redis

from service.jobs.job import Job
from service.jobs.queue import JobQueue

MakeJob = Callable[..., Job]


async def test_a_stream_is_as_long_as_its_work(
    queue: JobQueue, client: Redis, stream_of: Callable[[str], str], make_job: MakeJob
) -> None:
    async def length() -> int:
        return int(await client.xlen(stream_of("interactive")))

    assert await length() == 0
    jobs = [make_job(deadline_at=time.time() + 100 + i) for i in range(6)]
    await queue.put(jobs)
    assert await length() == 6
    deliveries = await queue.take("w", 3, 0)
    assert await length() == 6  # three wait, three run
    await queue.finish("w", deliveries[0], [], {})
    assert await length() == 5
    await queue.give_back("w", deliveries[1:2])
    assert await length() == 5
    while taken := await queue.take("w", 8, 0):
        for delivery in taken:
            await queue.finish("w", delivery, [], {})
    await queue.finish("w", deliveries[2], [], {})
    assert await length() == 0  # nobody is kept for nothing


async def test_no_entry_of_a_cancelled_job_keeps_a_worker(
    queue: JobQueue, client: Redis, stream_of: Callable[[str], str], make_job: MakeJob
) -> None:
    jobs = [make_job() for _ in range(3)]
    await queue.put(jobs)
    for job in jobs:
        await queue.cancel(job.id)
    assert await queue.take("w", 8, 0) == []
    assert await client.xlen(stream_of("interactive")) == 0
