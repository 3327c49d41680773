"""Cancelling: a waiting job ends at once, a running one is marked for its worker."""

import asyncio
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from service.attending import Attending
from service.jobs.job import Delivery, Job, Status
from service.jobs.queue import JobQueue
from service.running import RunningJob, RunningJobs
from service.tasks import end_tasks

MakeJob = Callable[..., Job]


async def test_a_waiting_job_ends_at_once_and_makes_room(
    queue: JobQueue, client: Redis, stream_of: Callable[[str], str], make_job: MakeJob
) -> None:
    cancelled, other = make_job(), make_job()
    await queue.put([cancelled, other], {cancelled.id: b"source"})

    assert await queue.cancel(cancelled.id) is Status.CANCELLED
    outcome = await queue.wait(cancelled.id, 5)
    assert (outcome.status, outcome.outputs, outcome.error) == (Status.CANCELLED, [], None)
    assert await client.xlen(stream_of("interactive")) == 1
    assert (await queue.depth())["interactive"].waiting == 1

    assert [d.job.id for d in await queue.take("w", 4, 0)] == [other.id]
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


async def test_workers_are_told_of_running_jobs_that_are_cancelled(
    queue: JobQueue, make_job: MakeJob
) -> None:
    running, waiting = make_job(), make_job()
    await queue.put([running])
    await queue.take("w", 1, 0)
    place = await queue.await_cancellation(None, 1)
    assert await queue.await_cancellation(place, 0.01) == place

    told = asyncio.create_task(queue.await_cancellation(place, 1))
    await queue.put([waiting])
    await queue.cancel(waiting.id)  # ends at once, and concerns no worker
    await queue.cancel(running.id)
    after = await told
    assert after != place
    # What happens between two calls is not missed.
    assert await queue.await_cancellation(place, 1) == after
    assert await queue.await_cancellation(after, 0.01) == after


async def test_a_job_that_is_cancelled_on_its_way_to_the_worker_is_found(
    queue: JobQueue, make_job: MakeJob
) -> None:
    job = make_job()
    await queue.put([job])
    [delivery] = await queue.take("w", 1, 0)
    held = RunningJobs(4)
    found: asyncio.Queue[RunningJob] = asyncio.Queue()

    def on_cancelled(running: RunningJob) -> None:
        running.ending = True
        found.put_nowait(running)

    watching = asyncio.create_task(Attending(queue, held, on_cancelled).watch())
    place = await queue.await_cancellation(None, 1)
    await queue.cancel(job.id)
    assert await queue.await_cancellation(place, 1) != place
    await asyncio.sleep(0)  # the worker hears of it before the job arrives there
    running = held.add(delivery)
    assert await asyncio.wait_for(found.get(), 20) is running
    await end_tasks([watching])
