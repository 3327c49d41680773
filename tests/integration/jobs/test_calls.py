"""Of the workers that wait, a new job calls one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from service.jobs.job import Delivery, Job
from service.jobs.queue import JobQueue

MakeJob = Callable[..., Job]
Waiting = dict[str, asyncio.Task[list[Delivery]]]
LONG_MS = 60_000  # a test that waits for this long has failed


@pytest.fixture
def waiting(queue: JobQueue, queue_name: str, client: Redis) -> Callable[..., Any]:
    """Context of workers that wait, by name with (credit, urgent credit, free places)."""

    @asynccontextmanager
    async def wait(**readers: tuple[int, int, int]) -> AsyncIterator[Waiting]:
        tasks = {
            name: asyncio.create_task(
                queue.take(name, credit, LONG_MS, urgent_credit=urgent, places=places)
            )
            for name, (credit, urgent, places) in readers.items()
        }
        async with asyncio.timeout(5):
            while await num_ready(client, queue_name) < len(tasks):
                await asyncio.sleep(0.002)
        try:
            yield tasks
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    return wait


async def num_ready(client: Redis, queue_name: str) -> int:
    root = f"rpiae:{{{queue_name}}}:ready"
    return int(await client.zcard(f"{root}:any")) + int(await client.zcard(f"{root}:urgent"))


async def takers(tasks: Waiting, count: int) -> list[str]:
    """Names of the workers that got a job, once `count` have."""
    async with asyncio.timeout(5):
        while sum(task.done() for task in tasks.values()) < count:
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.05)
    return sorted(name for name, task in tasks.items() if task.done())


async def test_who_has_most_free_places_is_called(
    queue: JobQueue, make_job: MakeJob, waiting: Callable[..., Any]
) -> None:
    async with waiting(few=(1, 1, 3), most=(1, 1, 16), some=(1, 1, 9)) as tasks:
        for count, expected in enumerate((["most"], ["most", "some"], ["few", "most", "some"]), 1):
            await queue.put([make_job()])
            assert await takers(tasks, count) == expected


async def test_one_look_for_one_job(
    queue: JobQueue, client: Redis, make_job: MakeJob, waiting: Callable[..., Any]
) -> None:
    async def num_scripts() -> int:
        stats: Any = await client.info("commandstats")
        return int(stats["cmdstat_evalsha"]["calls"])

    async with waiting(**{f"w{i}": (1, 1, 1) for i in range(8)}) as tasks:
        before = await num_scripts()
        await queue.put([make_job()])
        assert len(await takers(tasks, 1)) == 1
        assert await num_scripts() - before == 2  # put and take


async def test_jobs_that_come_together_call_as_many(
    queue: JobQueue, client: Redis, queue_name: str, make_job: MakeJob, waiting: Callable[..., Any]
) -> None:
    async with waiting(**{f"w{i}": (1, 1, 1) for i in range(5)}) as tasks:
        await queue.put([make_job() for _ in range(3)])
        assert len(await takers(tasks, 3)) == 3
        assert await num_ready(client, queue_name) == 2


async def test_who_takes_interactive_jobs_only_is_called_last_and_for_those_only(
    queue: JobQueue, make_job: MakeJob, waiting: Callable[..., Any]
) -> None:
    async with waiting(full=(0, 2, 9), free=(1, 1, 1)) as tasks:
        await queue.put([make_job()])
        assert await takers(tasks, 1) == ["free"]
        await queue.put([make_job(priority="batch")])
        assert await takers(tasks, 1) == ["free"]
        job = make_job()
        await queue.put([job])
        assert await takers(tasks, 2) == ["free", "full"]
        assert [delivery.job.id for delivery in tasks["full"].result()] == [job.id]


async def test_a_worker_has_two_readers_that_are_called_apart(
    queue: JobQueue, client: Redis, queue_name: str, make_job: MakeJob
) -> None:
    assert await queue.take("w", 1, 5) == []
    assert await queue.take("w", 0, 5, urgent_credit=1) == []
    assert await num_ready(client, queue_name) == 2
    await queue.withdraw("w")
    assert await num_ready(client, queue_name) == 1
    await queue.put([make_job()])
    [delivery] = await queue.take("w", 0, LONG_MS, urgent_credit=1)
    assert delivery.num_deliveries == 1


async def test_who_got_as_many_as_wanted_is_not_called(
    queue: JobQueue, client: Redis, queue_name: str, make_job: MakeJob
) -> None:
    await queue.put([make_job(), make_job()])
    assert len(await queue.take("w", 2, 5)) == 2
    assert await num_ready(client, queue_name) == 0
    await queue.put([make_job()])
    assert len(await queue.take("w", 2, 5)) == 1
    assert await num_ready(client, queue_name) == 1


async def test_who_withdraws_passes_his_call_on(
    queue: JobQueue, make_job: MakeJob, waiting: Callable[..., Any]
) -> None:
    assert await queue.take("leaves", 9, 5) == []
    async with waiting(stays=(1, 1, 1)) as tasks:
        job = make_job(priority="batch")
        await queue.put([job])  # calls who has more places
        await queue.withdraw("leaves")
        assert await takers(tasks, 1) == ["stays"]
        assert [delivery.job.id for delivery in tasks["stays"].result()] == [job.id]


async def test_a_call_that_nobody_hears_costs_a_second_at_most(
    queue: JobQueue, client: Redis, queue_name: str, make_job: MakeJob
) -> None:
    assert await queue.take("killed", 9, 5) == []
    assert await queue.take("alive", 1, 5) == []
    await queue.put([make_job()])
    async with asyncio.timeout(5):
        [delivery] = await queue.take("alive", 1, LONG_MS)
    assert delivery.num_deliveries == 1
    [call] = await client.keys(f"rpiae:{{{queue_name}}}:call:*")
    assert call.decode().endswith(":killed")
    assert 0 < await client.pttl(call) <= 10_000


async def test_a_worker_that_is_forgotten_is_not_called(
    queue: JobQueue, client: Redis, queue_name: str
) -> None:
    assert await queue.take("w", 1, 5) == []
    assert await queue.take("w", 0, 5, urgent_credit=1) == []
    await queue.announce("w", {}, 0)
    assert await num_ready(client, queue_name) == 0


async def test_a_call_for_what_was_seen_by_now_is_over(
    queue: JobQueue, client: Redis, queue_name: str, make_job: MakeJob
) -> None:
    """It looked before it heard the call: the call must not wake it a second time."""
    assert await queue.take("w", 2, 5) == []
    await queue.put([make_job()])
    queue._called.clear()  # as after an error: it looks at once
    assert len(await queue.take("w", 2, 5)) == 1
    assert await client.keys(f"rpiae:{{{queue_name}}}:call:*") == []


async def test_the_shortest_wait_ends(queue: JobQueue) -> None:
    async with asyncio.timeout(4):
        for _ in range(2):  # the second one waits for a call
            assert await queue.take("w", 1, 1) == []
