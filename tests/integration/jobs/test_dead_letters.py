"""Jobs that were given up can be looked at and put back, as long as they are kept."""

import time
from collections.abc import Awaitable, Callable

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from service.jobs.job import Delivery, Job, Status
from service.jobs.queue import JobQueue

MakeJob = Callable[..., Job]
GiveUp = Callable[..., Awaitable[Job]]


@pytest.fixture
def give_up(make_job: MakeJob, let_lease_end: Callable[[str, Delivery], Awaitable[None]]) -> GiveUp:
    """Put a job, which a worker takes and dies of."""

    async def give(queue: JobQueue, **fields: object) -> Job:
        job = make_job(**fields)
        await queue.put([job], {job.id: b"source"})
        [delivery] = await queue.take("dead", 1, 0)
        await let_lease_end("dead", delivery)
        assert await queue.take("alive", 1, 0) == []
        return job

    return give


@pytest_asyncio.fixture
async def strict(make_queue: Callable[..., JobQueue]) -> JobQueue:
    """A queue that gives a job up when its first worker dies."""
    queue = make_queue(max_deliveries=1, dead_letter_ttl_s=1000)
    await queue.open()
    return queue


async def test_what_was_given_up_can_be_put_back(strict: JobQueue, give_up: GiveUp) -> None:
    job = await give_up(strict, deadline_at=time.time() + 100, created_at=time.time() - 200)
    assert (await strict.wait(job.id, 5)).status is Status.FAILED
    [letter] = await strict.dead_letters()
    assert (letter["id"], letter["worker"], letter["num_deliveries"]) == (job.id, "dead", 1)
    assert abs(letter["at"] - time.time()) < 30

    assert await strict.requeue(job.id)

    assert await strict.dead_letters() == []
    known = await strict.job(job.id)
    assert known is not None
    again, status = known
    assert status is Status.QUEUED
    assert again.deadline_at is not None
    assert abs(again.deadline_at - time.time() - 300) < 30  # as much time as it had at first
    [delivery] = await strict.take("w", 1, 0)
    assert (delivery.payload, delivery.num_deliveries) == (b"source", 1)
    assert delivery.job == again
    assert await strict.finish("w", delivery, [b"picture"], {})
    assert (await strict.wait(job.id, 5)).outputs == [b"picture"]
    kinds = [event.kind async for event in strict.events(job.id)]
    assert kinds == ["queued", "started", "succeeded"]


async def test_a_job_can_be_given_up_again(
    strict: JobQueue,
    give_up: GiveUp,
    let_lease_end: Callable[[str, Delivery], Awaitable[None]],
) -> None:
    job = await give_up(strict)
    for _ in range(2):
        assert await strict.requeue(job.id)
        assert not await strict.requeue(job.id)
        [delivery] = await strict.take("dead", 1, 0)
        await let_lease_end("dead", delivery)
        assert await strict.take("alive", 1, 0) == []
        assert [letter["id"] for letter in await strict.dead_letters()] == [job.id]


async def test_only_dead_letters_can_be_put_back(strict: JobQueue, make_job: MakeJob) -> None:
    waiting, done = make_job(), make_job()
    await strict.put([done])
    [delivery] = await strict.take("w", 1, 0)
    await strict.finish("w", delivery, [], {})
    await strict.put([waiting])

    for job_id in (waiting.id, done.id, "never-put"):
        assert not await strict.requeue(job_id)
    assert [d.job for d in await strict.take("w", 9, 0)] == [waiting]


async def test_letters_and_payloads_are_kept_for_their_time(
    strict: JobQueue, client: Redis, give_up: GiveUp
) -> None:
    job = await give_up(strict)
    root = strict._root
    for kind in ("job", "payload"):
        assert 900 < await client.ttl(f"{root}:{kind}:{job.id}") <= 1000

    await client.delete(f"{root}:job:{job.id}")  # as when its time is over
    assert await strict.dead_letters() == []
    assert not await strict.requeue(job.id)


async def test_old_letters_are_dropped_when_new_ones_come(
    make_queue: Callable[..., JobQueue],
    client: Redis,
    give_up: GiveUp,
    eventually: Callable[..., Awaitable[None]],
) -> None:
    queue = make_queue(max_deliveries=1, dead_letter_ttl_s=0.05)
    first = await give_up(queue)

    async def expired() -> bool:
        return await queue.job(first.id) is None

    await eventually(expired)
    await give_up(queue)
    assert await client.xlen(f"{queue._root}:dead") == 1


async def test_the_oldest_letter_makes_room_and_its_payload_goes(
    strict: JobQueue, client: Redis, give_up: GiveUp
) -> None:
    oldest = await give_up(strict)
    async with client.pipeline(transaction=False) as pipe:
        for _ in range(999):
            pipe.xadd(f"{strict._root}:dead", {"id": "another"})
        await pipe.execute()

    await give_up(strict)

    assert await client.xlen(f"{strict._root}:dead") == 1000
    assert not await client.exists(f"{strict._root}:payload:{oldest.id}")
