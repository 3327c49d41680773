"""Which jobs a worker is handed, in which order, how many; and which are refused at the door."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from service.errors import Overloaded
from service.jobs.connection import connect
from service.jobs.job import Delivery, Job, Status
from service.jobs.queue import JobQueue

MakeJob = Callable[..., Job]


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.job.id for delivery in deliveries]


async def test_jobs_come_in_the_order_in_which_they_were_put(
    queue: JobQueue, make_job: MakeJob
) -> None:
    jobs = [make_job() for _ in range(6)]
    await queue.put(jobs[:2])
    await queue.put(jobs[2:])

    taken = await queue.take("w", 4, 0) + await queue.take("w", 4, 0)

    assert [delivery.job for delivery in taken] == jobs
    assert [delivery.num_deliveries for delivery in taken] == [1] * 6


async def test_payload_and_waiting_time_arrive_with_the_job(
    queue: JobQueue, make_job: MakeJob
) -> None:
    with_payload, without = make_job(), make_job()
    payload = bytes(range(256)) * 40
    await queue.put([with_payload, without], {with_payload.id: payload})

    first, second = await queue.take("w", 2, 0)

    assert (first.payload, second.payload) == (payload, None)
    assert first.waited_s >= 0


@pytest.mark.parametrize("credit", [0, 1, 3])
async def test_never_more_jobs_than_credit(queue: JobQueue, make_job: MakeJob, credit: int) -> None:
    await queue.put([make_job() for _ in range(3)])
    await queue.put([make_job(priority="batch") for _ in range(3)])

    assert len(await queue.take("w", credit, 0)) == credit


async def test_interactive_jobs_go_first_and_batch_jobs_get_one_slot_in_four(
    queue: JobQueue, make_queue: Callable[..., JobQueue], make_job: MakeJob
) -> None:
    other = make_queue()
    await queue.put([make_job(priority="batch") for _ in range(8)])
    await queue.put([make_job() for _ in range(24)])

    order = []
    for turn in range(16):
        owner = (queue, other)[turn % 2]
        order += [d.job.priority for d in await owner.take(f"w{turn % 2}", 1 + turn % 3, 0)]

    assert order[:3] == ["interactive"] * 3
    assert [order[i : i + 4].count("batch") for i in range(0, len(order) - 3, 4)] == [1] * 7


async def test_batch_jobs_take_every_slot_that_is_left(queue: JobQueue, make_job: MakeJob) -> None:
    await queue.put([make_job(priority="batch") for _ in range(5)])
    await queue.put([make_job()])

    taken = await queue.take("w", 8, 0)

    assert [delivery.job.priority for delivery in taken].count("batch") == 5


async def test_an_empty_queue_gives_nothing(queue: JobQueue) -> None:
    assert await queue.take("w", 4, 0) == []
    assert await queue.take("w", 4, 30) == []


async def test_a_blocked_take_wakes_for_a_new_job(
    queue: JobQueue, client: Redis, make_job: MakeJob, eventually: Callable[..., Awaitable[None]]
) -> None:
    for priority in ("interactive", "batch"):
        blocked = asyncio.create_task(queue.take("w", 4, 60_000))
        await eventually(lambda: reading(client))
        job = make_job(priority=priority)
        await queue.put([job])
        assert ids(await blocked) == [job.id]


async def reading(client: Redis) -> bool:
    """Whether some client is blocked in a read."""
    return int((await client.info("clients"))["blocked_clients"]) > 0


async def test_several_workers_share_the_jobs_without_a_double(
    make_queue: Callable[..., JobQueue], queue: JobQueue, make_job: MakeJob
) -> None:
    jobs = [make_job(priority=("interactive", "batch")[i % 2]) for i in range(200)]
    await queue.put(jobs)

    async def work(name: str) -> list[str]:
        mine, seen = make_queue(), []
        while deliveries := await mine.take(name, 3, 0):
            for delivery in deliveries:
                assert await mine.finish(name, delivery, [], {})
                seen.append(delivery.job.id)
        return seen

    shares = await asyncio.gather(*(work(f"w{i}") for i in range(4)))

    assert sorted(job_id for share in shares for job_id in share) == sorted(job.id for job in jobs)


async def test_a_full_queue_refuses_all_or_nothing(
    make_queue: Callable[..., JobQueue], make_job: MakeJob
) -> None:
    queue = make_queue(max_waiting=4)
    await queue.put([make_job() for _ in range(3)])
    with pytest.raises(Overloaded) as refused:
        await queue.put([make_job(), make_job()])

    assert refused.value.status == 429
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 1
    assert (await queue.depth())["interactive"].waiting == 3
    await queue.put([make_job()])
    await queue.take("w", 1, 0)
    await queue.put([make_job()])  # a job that runs does not wait


async def test_a_flood_of_batch_jobs_leaves_the_door_open_for_interactive_ones(
    make_queue: Callable[..., JobQueue], make_job: MakeJob
) -> None:
    queue = make_queue(max_waiting=2)
    await queue.put([make_job(priority="batch") for _ in range(2)])
    await queue.put([make_job()])
    with pytest.raises(Overloaded):
        await queue.put([make_job(), make_job(priority="batch")])
    assert (await queue.depth())["interactive"].waiting == 1


async def test_retry_after_follows_the_pace_of_the_queue(
    make_queue: Callable[..., JobQueue], client: Redis, queue_name: str, make_job: MakeJob
) -> None:
    queue = make_queue(max_waiting=1)
    await client.hset(f"rpiae:{{{queue_name}}}:pace", "job_ms", "2500")
    await queue.put([make_job()])
    with pytest.raises(Overloaded) as refused:
        await queue.put([make_job(), make_job()])
    assert refused.value.retry_after_s == 5  # two must end first


async def test_putting_a_job_again_changes_nothing(queue: JobQueue, make_job: MakeJob) -> None:
    job = make_job()
    await queue.put([job])
    await queue.put([job])

    assert ids(await queue.take("w", 4, 0)) == [job.id]


async def test_a_job_past_its_deadline_is_ended_and_not_handed_out(
    queue: JobQueue, make_job: MakeJob
) -> None:
    late = make_job(deadline_at=time.time() - 1)
    soon = make_job(deadline_at=time.time() + 600)
    await queue.put([late, soon])

    assert ids(await queue.take("w", 4, 0)) == [soon.id]
    outcome = await queue.wait(late.id, 5)
    assert outcome.status is Status.FAILED
    assert outcome.error is not None
    assert outcome.error.code == "deadline_exceeded"


async def test_depth_counts_what_no_worker_holds(
    queue: JobQueue, make_job: MakeJob, eventually: Callable[..., Awaitable[None]]
) -> None:
    empty = await queue.depth()
    assert [(d.waiting, d.oldest_s) for d in empty.values()] == [(0, 0), (0, 0)]

    await queue.put([make_job(), make_job(), make_job(priority="batch")])
    [taken] = await queue.take("w", 1, 0)
    depth = await queue.depth()
    assert (depth["interactive"].waiting, depth["batch"].waiting) == (1, 1)

    async def aged() -> bool:
        return (await queue.depth())["batch"].oldest_s > 0.02

    await eventually(aged)
    await queue.give_back("w", [taken])
    assert (await queue.depth())["interactive"].waiting == 2


@pytest.mark.parametrize("protocol", [2, 3])
async def test_both_protocols_of_redis_do(
    redis_url: str, queue_name: str, make_job: MakeJob, protocol: int
) -> None:
    redis = connect(redis_url, protocol=protocol)
    queue = JobQueue(redis, name=queue_name)
    await queue.open()
    job = make_job()
    waiting = asyncio.create_task(queue.wait(job.id, 20))
    await queue.put([job], {job.id: b"\x00\xff"})
    [delivery] = await queue.take("w", 1, 0)
    events = queue.events(job.id)
    kinds = [(await anext(events)).kind, (await anext(events)).kind]
    coming = asyncio.create_task(anext(events))
    await queue.publish(job.id, "preview", {"step": 1}, b"\x01")
    assert (await coming).blob == b"\x01"
    assert await queue.finish("w", delivery, [b"\xfe"], {"seed": 1})

    assert kinds == ["queued", "started"]
    assert [event.kind async for event in events] == ["succeeded"]
    assert (await waiting).outputs == [b"\xfe"]
    await queue.announce("w", {"pid": 1}, 60)
    assert await queue.workers() == {"w": {"pid": 1}}
    assert await queue.dead_letters() == []
    assert (await queue.depth())["interactive"].waiting == 0
    assert await queue.cancel(job.id) is Status.SUCCEEDED
    assert await queue.cancelled([job.id]) == set()
    assert await queue.await_cancellation("0-0", 0.01) == "0-0"
    await queue.close()
    await redis.aclose()


async def test_a_client_that_decodes_replies_is_refused(redis_url: str) -> None:
    redis = Redis.from_url(redis_url, decode_responses=True)
    with pytest.raises(ValueError, match="decode_responses"):
        JobQueue(redis, name="q")
    await redis.aclose()


async def test_a_worker_that_got_all_there_was_gets_what_comes_then(
    queue: JobQueue,
    make_job: MakeJob,
    let_lease_end: Callable[[str, Delivery], Awaitable[None]],
) -> None:
    """It waits from where it stands; whatever can come meanwhile ends the waiting."""
    first, second, third = (make_job() for _ in range(3))
    await queue.put([first])
    [held] = await queue.take("w", 2, 0)
    assert await queue.take("w", 2, 20) == []
    await queue.put([second])
    assert ids(await queue.take("w", 2, 10_000)) == [second.id]

    blocked = asyncio.create_task(queue.take("w", 2, 10_000))
    await asyncio.sleep(0.02)
    await queue.put([third])
    taken = await blocked
    assert ids(taken) == [third.id]
    await queue.give_back("w", taken)
    assert ids(await queue.take("w", 2, 10_000)) == [third.id]

    await let_lease_end("w", held)
    assert ids(await queue.take("other", 2, 0)) == [first.id]


async def test_a_worker_that_goes_on_waiting_asks_once_for_each_wait(
    queue: JobQueue, client: Redis
) -> None:
    async def num_scripts() -> int:
        stats: Any = await client.info("commandstats")
        return int(stats["cmdstat_evalsha"]["calls"])

    assert await queue.take("w", 1, 30) == []
    before = await num_scripts()
    assert await queue.take("w", 1, 30) == []
    assert await num_scripts() == before + 1
