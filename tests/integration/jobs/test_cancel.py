"""Cancelling: a waiting job ends at once, a running one is marked for its worker."""

from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from service.jobs.job import Delivery, Job, Status
from service.jobs.queue import JobQueue

MakeJob = Callable[..., Job]


async def test_a_waiting_job_ends_at_once_and_its_entry_stays_until_it_is_read(
    queue: JobQueue, client: Redis, stream_of: Callable[[str], str], make_job: MakeJob
) -> None:
    cancelled, other = make_job(), make_job()
    await queue.put([cancelled, other], {cancelled.id: b"source"})

    assert await queue.cancel(cancelled.id) is Status.CANCELLED
    outcome = await queue.wait(cancelled.id, 5)
    assert (outcome.status, outcome.outputs, outcome.error) == (Status.CANCELLED, [], None)
    assert await client.xlen(stream_of("interactive")) == 2

    assert [d.job.id for d in await queue.take("w", 4, 0)] == [other.id]
    assert await client.xlen(stream_of("interactive")) == 1
    kinds = [event.kind async for event in queue.events(cancelled.id)]
    assert kinds == ["queued", "cancelled"]


async def test_a_running_job_is_marked_and_ended_by_its_worker(
    queue: JobQueue, make_job: MakeJob
) -> None:
    marked, other = make_job(), make_job()
    await queue.put([marked, other])
    taken = {d.job.id: d for d in await queue.take("w", 2, 0)}
    assert await queue.cancelled(taken) == set()

    assert await queue.cancel(marked.id) is Status.RUNNING
    assert await queue.cancelled(taken) == {marked.id}
    assert await queue.outcome(marked.id) is None
    assert await queue.finish_cancelled("w", taken[marked.id])

    assert (await queue.wait(marked.id, 5)).status is Status.CANCELLED
    assert await queue.cancelled(taken) == set()
    assert await queue.finish("w", taken[other.id], [b"picture"], {})


async def test_a_marked_job_whose_worker_died_is_not_run_again(
    queue: JobQueue,
    make_job: MakeJob,
    let_lease_end: Callable[[str, Delivery], Awaitable[None]],
) -> None:
    job = make_job()
    await queue.put([job])
    [delivery] = await queue.take("dead", 1, 0)
    await queue.cancel(job.id)
    await let_lease_end("dead", delivery)

    assert await queue.take("alive", 1, 0) == []
    assert (await queue.wait(job.id, 5)).status is Status.CANCELLED


async def test_a_job_that_was_given_back_is_cancelled_like_a_waiting_one(
    queue: JobQueue, make_job: MakeJob
) -> None:
    job = make_job()
    await queue.put([job])
    await queue.give_back("w", await queue.take("w", 1, 0))

    assert await queue.cancel(job.id) is Status.CANCELLED
    assert await queue.take("w", 1, 0) == []


async def test_an_ended_or_unknown_job_stays_as_it_is(queue: JobQueue, make_job: MakeJob) -> None:
    job = make_job()
    await queue.put([job])
    [delivery] = await queue.take("w", 1, 0)
    await queue.finish("w", delivery, [b"picture"], {})

    assert await queue.cancel(job.id) is Status.SUCCEEDED
    assert (await queue.wait(job.id, 5)).outputs == [b"picture"]
    assert await queue.cancel("never-put") is None
    assert await queue.cancelled(["never-put"]) == set()
    assert await queue.cancelled([]) == set()


async def test_many_cancelled_jobs_do_not_hide_the_one_behind_them(
    queue: JobQueue, make_queue: Callable[..., JobQueue], make_job: MakeJob
) -> None:
    roomy = make_queue(max_waiting=3000)
    jobs = [make_job() for _ in range(1100)]
    await roomy.put(jobs)
    for job in jobs[:-1]:
        await queue.cancel(job.id)

    [delivery] = await queue.take("w", 4, 20_000)

    assert delivery.job == jobs[-1]
