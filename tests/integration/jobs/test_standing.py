"""What a caller has in the queue, and what its next job would wait for."""

import asyncio
import time
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from service.errors import ErrorBody, Overloaded
from service.jobs.job import Job
from service.jobs.queue import JobQueue
from service.jobs.standing import Ahead, Standing

MakeJob = Callable[..., Job]


@pytest.fixture
def standing(client: Redis, queue_name: str) -> Standing:
    return Standing(client, name=queue_name)


async def reserve_and_put(standing: Standing, queue: JobQueue, jobs: list[Job]) -> int | None:
    """How many the caller had when it was refused, with a limit of three."""
    num_held = await standing.reserve("caller", jobs, 3)
    if num_held is None:
        await queue.put(jobs)
    return num_held


async def test_jobs_count_until_they_end(
    standing: Standing, queue: JobQueue, make_job: MakeJob
) -> None:
    first, second, third, late = (make_job() for _ in range(4))
    assert await reserve_and_put(standing, queue, [first, second, third]) is None
    assert await reserve_and_put(standing, queue, [late]) == 3
    # Somebody else's do not matter.
    assert await standing.reserve("another", [make_job() for _ in range(3)], 3) is None

    taken = {held.job.id: held for held in await queue.take("w", 2, 0)}
    assert await reserve_and_put(standing, queue, [late]) == 3  # running ones count
    assert await queue.finish("w", taken[first.id], [b"x"], {})
    assert await reserve_and_put(standing, queue, [late]) is None
    assert await queue.fail("w", taken[second.id], ErrorBody("broken"))
    await queue.cancel(third.id)
    assert await reserve_and_put(standing, queue, [make_job(), make_job()]) is None
    assert await reserve_and_put(standing, queue, [make_job()]) == 3


async def test_all_jobs_of_a_request_or_none(
    standing: Standing, queue: JobQueue, make_job: MakeJob
) -> None:
    assert await reserve_and_put(standing, queue, [make_job(), make_job()]) is None
    assert await reserve_and_put(standing, queue, [make_job(), make_job()]) == 2
    assert await reserve_and_put(standing, queue, [make_job()]) is None


async def test_jobs_that_were_refused_after_all_count_no_more(
    standing: Standing, make_job: MakeJob
) -> None:
    jobs = [make_job() for _ in range(3)]
    assert await standing.reserve("caller", jobs, 3) is None
    assert await standing.reserve("caller", [make_job()], 3) == 3
    await standing.release("caller", jobs[:2])
    assert await standing.reserve("caller", [make_job(), make_job()], 3) is None
    assert await standing.reserve("caller", [make_job()], 3) == 3


async def test_of_many_at_once_as_many_as_allowed_are_let_in(
    standing: Standing, make_job: MakeJob
) -> None:
    answers = await asyncio.gather(
        *(standing.reserve("caller", [make_job()], 3) for _ in range(20))
    )
    assert answers.count(None) == 3


async def test_jobs_that_were_refused_are_forgotten(
    standing: Standing,
    make_queue: Callable[..., JobQueue],
    client: Redis,
    queue_name: str,
    make_job: MakeJob,
) -> None:
    full = make_queue(max_waiting=1)
    await full.open()
    with pytest.raises(Overloaded):
        await reserve_and_put(standing, full, [make_job() for _ in range(3)])
    assert await standing.reserve("caller", [make_job()], 3) == 3
    # Make the note older than any put takes.
    notes = f"rpiae:{{{queue_name}}}:held:caller"
    for member in await client.zrange(notes, 0, -1):
        await client.zincrby(notes, -60_000, member)
    assert await standing.reserve("caller", [make_job()], 3) is None


async def test_nothing_is_left_behind(
    standing: Standing, client: Redis, queue_name: str, make_job: MakeJob
) -> None:
    await standing.reserve("caller", [make_job()], 3)
    assert 0 < await client.ttl(f"rpiae:{{{queue_name}}}:held:caller") <= 86400


def due(make_job: MakeJob, seconds: float, **fields: object) -> Job:
    return make_job(deadline_at=time.time() + seconds, **fields)


async def test_an_empty_queue_has_nothing_ahead(
    standing: Standing, queue: JobQueue, make_job: MakeJob
) -> None:
    assert await standing.ahead(due(make_job, 10)) == Ahead(row_steps=0, num_waiting=0)


async def test_of_ones_own_jobs_those_with_earlier_deadlines(
    standing: Standing, queue: JobQueue, make_job: MakeJob
) -> None:
    await queue.put([due(make_job, seconds, owner="a", row_steps=10) for seconds in (20, 40, 60)])
    for seconds, ahead in ((10, 0), (30, 10), (50, 20), (70, 30)):
        job = due(make_job, seconds, owner="a")
        assert await standing.ahead(job) == Ahead(row_steps=ahead, num_waiting=3)


async def test_of_each_others_jobs_as_many_as_of_ones_own(
    standing: Standing, queue: JobQueue, make_job: MakeJob
) -> None:
    """Owners take turns: who has much waiting does not stand before one who has nothing."""
    await queue.put([due(make_job, 5, owner="much", row_steps=10) for _ in range(20)])
    await queue.put([due(make_job, 5, owner="some", row_steps=10) for _ in range(2)])
    newcomer = due(make_job, 60, owner="new")
    assert (await standing.ahead(newcomer)).row_steps == 0
    assert (await standing.ahead(due(make_job, 60, owner="some"))).row_steps == 20 + 20
    assert (await standing.ahead(due(make_job, 60, owner="much"))).row_steps == 200 + 20


async def test_batch_jobs_go_after_interactive_ones(
    standing: Standing, queue: JobQueue, make_job: MakeJob
) -> None:
    await queue.put([due(make_job, 60, owner="other", row_steps=10) for _ in range(4)])
    await queue.put([due(make_job, 5, owner="a", priority="batch", row_steps=10)])
    ahead = await standing.ahead(due(make_job, 30, owner="a", priority="batch"))
    assert ahead == Ahead(row_steps=50, num_waiting=5)
    assert (await standing.ahead(due(make_job, 30, owner="a"))).row_steps == 0


async def test_what_was_taken_is_not_ahead(
    standing: Standing,
    queue: JobQueue,
    make_job: MakeJob,
) -> None:
    await queue.put([due(make_job, 5, owner="a", row_steps=10) for _ in range(3)])
    assert len(await queue.take("w", 2, 0)) == 2
    assert await standing.ahead(due(make_job, 30, owner="a")) == Ahead(10, 1)
