"""Jobs that may have killed their workers: in their last run they do not meet each other."""

from collections.abc import Awaitable, Callable

import pytest

from service.jobs.job import Delivery, Job, Status
from service.jobs.queue import JobQueue

MakeJob = Callable[..., Job]
LetLeaseEnd = Callable[[str, Delivery], Awaitable[None]]


@pytest.fixture
def die(queue: JobQueue, let_lease_end: LetLeaseEnd) -> Callable[..., Awaitable[None]]:
    """Function by which a worker takes jobs and is never heard again."""

    async def take_and_die(worker: str, expected: list[Job]) -> None:
        deliveries = await queue.take(worker, len(expected), 0)
        assert {delivery.job.id for delivery in deliveries} == {job.id for job in expected}
        for delivery in deliveries:
            await let_lease_end(worker, delivery)

    return take_and_die


async def test_a_worker_gets_one_last_chance_at_a_time(
    queue: JobQueue, make_job: MakeJob, die: Callable[..., Awaitable[None]]
) -> None:
    jobs = [make_job(), make_job(), make_job(priority="batch")]
    fresh = make_job()
    await queue.put(jobs)
    await die("first", jobs)
    await die("second", jobs)
    await queue.put([fresh])

    taken = await queue.take("third", 8, 0)
    assert [delivery.job.id for delivery in taken] == [jobs[0].id, fresh.id]
    assert taken[0].num_deliveries == 3
    assert await queue.take("third", 8, 0) == []
    [elsewhere] = await queue.take("fourth", 8, 0)
    assert elsewhere.job.id == jobs[1].id

    assert await queue.finish("third", taken[0], [b"picture"], {})
    [another] = await queue.take("third", 8, 0)
    assert another.job.id == jobs[2].id


async def test_the_guilty_job_is_given_up_and_its_neighbours_finish(
    queue: JobQueue,
    make_job: MakeJob,
    die: Callable[..., Awaitable[None]],
    let_lease_end: LetLeaseEnd,
) -> None:
    jobs = [make_job() for _ in range(4)]
    guilty = jobs[1].id
    await queue.put(jobs)
    await die("first", jobs)
    await die("second", jobs)
    finished = []
    for number in range(8):
        worker = f"later-{number}"
        for delivery in await queue.take(worker, 8, 0):
            if delivery.job.id == guilty:
                await let_lease_end(worker, delivery)
            else:
                assert await queue.finish(worker, delivery, [b"picture"], {})
                finished.append(delivery.job.id)
    assert finished == [job.id for job in jobs if job.id != guilty]
    outcome = await queue.outcome(guilty)
    assert outcome is not None
    assert outcome.status == Status.FAILED
    [letter] = await queue.dead_letters()
    assert (letter["id"], letter["num_deliveries"]) == (guilty, 3)


async def test_a_queue_that_gives_up_at_once_hands_out_any_number(
    make_queue: Callable[..., JobQueue], make_job: MakeJob
) -> None:
    queue = make_queue(max_deliveries=1)
    await queue.put([make_job(), make_job()])
    assert len(await queue.take("w", 8, 0)) == 2
