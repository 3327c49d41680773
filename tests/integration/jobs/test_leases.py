"""A job outlives its worker, runs on one worker at a time, and shows one result."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from service.errors import ErrorBody
from service.jobs.job import Delivery, Job, Status
from service.jobs.queue import JobQueue

MakeJob = Callable[..., Job]
LetLeaseEnd = Callable[[str, Delivery], Awaitable[None]]

ERROR = ErrorBody("the model broke", code="job_failed")


async def test_a_job_is_handed_on_when_its_lease_ends(
    queue: JobQueue, make_job: MakeJob, let_lease_end: LetLeaseEnd
) -> None:
    job = make_job(priority="batch")
    await queue.put([job, make_job()], {job.id: b"source"})
    taken = {d.job.id: d for d in await queue.take("dead", 2, 0)}
    assert await queue.take("alive", 4, 0) == []

    await let_lease_end("dead", taken[job.id])
    [again] = await queue.take("alive", 4, 0)

    assert again.job == job
    assert (again.payload, again.num_deliveries) == (b"source", 2)
    assert await queue.finish("alive", again, [b"picture"], {})


async def test_a_blocked_take_sees_a_lease_end(
    make_queue: Callable[..., JobQueue], make_job: MakeJob
) -> None:
    queue = make_queue(lease_s=0.05)
    await queue.put([make_job()])
    [first] = await queue.take("dead", 1, 0)

    [again] = await queue.take("alive", 1, 20_000)

    assert again.job == first.job


async def test_jobs_whose_lease_ended_go_before_new_ones(
    queue: JobQueue, make_job: MakeJob, let_lease_end: LetLeaseEnd
) -> None:
    old, new = make_job(priority="batch"), make_job()
    await queue.put([old])
    [delivery] = await queue.take("dead", 1, 0)
    await queue.put([new])
    await let_lease_end("dead", delivery)

    assert [d.job.id for d in await queue.take("alive", 2, 0)] == [old.id, new.id]


async def test_an_ended_lease_is_found_behind_many_running_jobs(
    queue: JobQueue, make_job: MakeJob, let_lease_end: LetLeaseEnd
) -> None:
    await queue.put([make_job() for _ in range(150)])
    deliveries = await queue.take("w", 150, 0)
    await let_lease_end("w", deliveries[-1])

    [found] = await queue.take("alive", 1, 0)

    assert found.job.id == deliveries[-1].job.id


async def test_renewing_keeps_the_job(
    queue: JobQueue, make_job: MakeJob, let_lease_end: LetLeaseEnd
) -> None:
    await queue.put([make_job(), make_job(priority="batch")])
    deliveries = await queue.take("w", 2, 0)
    for delivery in deliveries:
        await let_lease_end("w", delivery)

    assert await queue.renew("w", deliveries) == set()
    assert await queue.take("other", 4, 0) == []
    # Renewing is no delivery.
    await let_lease_end("w", deliveries[0])
    [again] = await queue.take("other", 4, 0)
    assert again.num_deliveries == 2


async def test_who_lost_the_lease_can_neither_renew_nor_finish_nor_give_back(
    queue: JobQueue, make_job: MakeJob, let_lease_end: LetLeaseEnd
) -> None:
    job = make_job()
    await queue.put([job])
    [slow] = await queue.take("slow", 1, 0)
    await let_lease_end("slow", slow)
    [fast] = await queue.take("fast", 1, 0)

    assert await queue.renew("slow", [slow]) == {job.id}
    assert not await queue.finish("slow", slow, [b"wrong"], {})
    assert not await queue.fail("slow", slow, ERROR)
    await queue.give_back("slow", [slow])
    assert await queue.take("third", 1, 0) == []
    assert await queue.outcome(job.id) is None

    assert await queue.renew("fast", [fast]) == set()
    assert await queue.finish("fast", fast, [b"right"], {"seed": 7})
    assert not await queue.finish("slow", slow, [b"wrong"], {})
    outcome = await queue.wait(job.id, 5)
    assert (outcome.status, outcome.outputs) == (Status.SUCCEEDED, [b"right"])
    assert outcome.info == {"seed": 7}


async def test_finishing_twice_shows_one_result(queue: JobQueue, make_job: MakeJob) -> None:
    job = make_job()
    await queue.put([job])
    [delivery] = await queue.take("w", 1, 0)

    assert await queue.finish("w", delivery, [b"one", b"two"], {"steps": 4})
    assert await queue.finish("w", delivery, [b"one", b"two"], {"steps": 4})
    assert await queue.fail("w", delivery, ERROR)  # too late: it is this worker's, and succeeded

    outcome = await queue.wait(job.id, 5)
    assert (outcome.status, outcome.outputs) == (Status.SUCCEEDED, [b"one", b"two"])
    kinds = [event.kind async for event in queue.events(job.id)]
    assert kinds == ["queued", "started", "succeeded"]
    assert await queue.renew("w", [delivery]) == {job.id}


async def test_an_ended_job_leaves_nothing_but_its_result(
    queue: JobQueue, client: Redis, queue_name: str, make_job: MakeJob
) -> None:
    good, bad = make_job(), make_job(priority="batch")
    await queue.put([good, bad], {good.id: b"in", bad.id: b"in"})
    for delivery in await queue.take("w", 2, 0):
        await queue.publish(delivery.job.id, "preview", {"step": 1}, b"preview")
        if delivery.job == good:
            await queue.finish("w", delivery, [b"out"], {})
        else:
            await queue.fail("w", delivery, ERROR)

    root = f"rpiae:{{{queue_name}}}"
    for priority in ("interactive", "batch"):
        stream = f"{root}:stream:{priority}"
        assert await client.xlen(stream) == 0
        assert (await client.xpending(stream, "workers"))["pending"] == 0
    of_jobs = [key.decode() async for key in client.scan_iter(f"{root}:*:job-*", count=1000)]
    kinds = {key.split(":")[2] for key in of_jobs}
    assert kinds == {"job", "events", "outputs", "blob"}
    assert all([0 < await client.ttl(key) <= 600 for key in of_jobs])


async def test_a_waiting_job_and_its_payload_expire_one_day(
    queue: JobQueue, client: Redis, queue_name: str, make_job: MakeJob
) -> None:
    job = make_job()
    await queue.put([job], {job.id: b"in"})
    for kind in ("job", "payload", "events"):
        assert 600 < await client.ttl(f"rpiae:{{{queue_name}}}:{kind}:{job.id}") <= 86400


async def test_a_job_that_kills_its_workers_is_given_up(
    make_queue: Callable[..., JobQueue], make_job: MakeJob, let_lease_end: LetLeaseEnd
) -> None:
    given_up: list[str] = []
    queue = make_queue(max_deliveries=2, on_dead_letter=given_up.append)
    poison, good = make_job(), make_job()
    await queue.put([poison])
    waiting = asyncio.create_task(queue.wait(poison.id, 20))
    for worker in ("w1", "w2"):
        [delivery] = await queue.take(worker, 1, 0)
        await let_lease_end(worker, delivery)
    await queue.put([good])

    assert [d.job.id for d in await queue.take("w3", 1, 0)] == [good.id]
    outcome = await waiting
    assert outcome.status is Status.FAILED
    assert outcome.error is not None
    assert "2 workers" in outcome.error.message
    [letter] = await queue.dead_letters()
    assert (letter["id"], letter["num_deliveries"], letter["worker"]) == (poison.id, 2, "w2")
    assert letter["error"]["code"] == outcome.error.code
    assert given_up == [poison.id]


async def test_what_is_given_back_is_free_at_once_and_not_counted(
    queue: JobQueue, make_job: MakeJob
) -> None:
    jobs = [make_job(), make_job(priority="batch")]
    await queue.put(jobs)
    for _ in range(5):
        deliveries = await queue.take("leaving", 2, 0)
        assert [d.num_deliveries for d in deliveries] == [1, 1]
        await queue.give_back("leaving", deliveries)
    assert not await queue.finish("leaving", deliveries[0], [], {})
    assert (await queue.job(jobs[0].id) or ())[1] is Status.QUEUED

    assert {d.job.id for d in await queue.take("next", 2, 0)} == {job.id for job in jobs}


async def test_giving_back_wakes_a_worker_that_waits(
    queue: JobQueue,
    client: Redis,
    make_job: MakeJob,
    eventually: Callable[..., Awaitable[None]],
) -> None:
    await queue.put([make_job()])
    deliveries = await queue.take("leaving", 1, 0)
    blocked = asyncio.create_task(queue.take("next", 1, 60_000))

    async def reading() -> bool:
        return int((await client.info("clients"))["blocked_clients"]) > 0

    await eventually(reading)
    await queue.give_back("leaving", deliveries)
    assert [d.job for d in await blocked] == [deliveries[0].job]


async def test_an_entry_that_somebody_deleted_does_no_harm(
    queue: JobQueue,
    client: Redis,
    make_job: MakeJob,
    stream_of: Callable[[str], str],
    let_lease_end: LetLeaseEnd,
) -> None:
    await queue.put([make_job(), make_job()])
    gone, left = await queue.take("w", 2, 0)
    for delivery in (gone, left):
        await let_lease_end("w", delivery)
    await client.xdel(stream_of("interactive"), gone.entry_id)

    assert [d.job for d in await queue.take("other", 4, 0)] == [left.job]
    pending = await client.xpending(stream_of("interactive"), "workers")
    assert pending["pending"] == 1


async def test_a_job_this_version_cannot_read_fails_alone(
    queue: JobQueue, client: Redis, queue_name: str, make_job: MakeJob
) -> None:
    foreign, good = make_job(), make_job()
    await queue.put([foreign, good])
    await client.hset(f"rpiae:{{{queue_name}}}:job:{foreign.id}", "params", '{"prompts": 3}')

    assert [d.job for d in await queue.take("w", 4, 0)] == [good]
    outcome = await queue.wait(foreign.id, 5)
    assert outcome.error is not None
    assert "params.prompt" in outcome.error.message


@pytest.mark.parametrize(
    "options", [{"batch_share": 0}, {"batch_share": 0.7}, {"lease_s": 0}, {"max_waiting": 0}]
)
async def test_impossible_options_are_refused(
    make_queue: Callable[..., JobQueue], options: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        make_queue(**options)
