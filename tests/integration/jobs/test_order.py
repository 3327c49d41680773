"""Whose job comes next: fair between owners, then the earliest deadline, then arrival."""

import itertools
import time
from collections import Counter
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from service.jobs.job import Job
from service.jobs.queue import JobQueue

MakeJob = Callable[..., Job]


async def take_owners(queue: JobQueue, count: int) -> list[str]:
    """Owners of the next jobs, one take each."""
    owners = []
    for _ in range(count):
        [delivery] = await queue.take("w", 1, 0)
        owners.append(delivery.job.owner)
        assert await queue.finish("w", delivery, [], {})
    return owners


async def test_who_has_one_job_does_not_wait_for_who_has_many(
    queue: JobQueue, make_job: MakeJob
) -> None:
    await queue.put([make_job(owner="flood", row_steps=50) for _ in range(100)])
    assert await take_owners(queue, 5) == ["flood"] * 5

    await queue.put([make_job(owner="single", row_steps=50)])

    assert await take_owners(queue, 1) == ["single"]


async def test_owners_get_equal_shares_of_row_steps_not_of_jobs(
    queue: JobQueue, make_job: MakeJob
) -> None:
    costs = {"cheap": 10, "dear": 60}
    for owner, row_steps in costs.items():
        await queue.put([make_job(owner=owner, row_steps=row_steps) for _ in range(120)])

    counts = Counter(await take_owners(queue, 70))

    served = {owner: counts[owner] * row_steps for owner, row_steps in costs.items()}
    assert abs(served["cheap"] - served["dear"]) <= max(costs.values())


async def test_staying_away_saves_up_no_turns(queue: JobQueue, make_job: MakeJob) -> None:
    await queue.put([make_job(owner="early", row_steps=5)])
    await take_owners(queue, 1)
    await queue.put([make_job(owner="busy", row_steps=5) for _ in range(60)])
    await take_owners(queue, 40)
    await queue.put([make_job(owner="early", row_steps=5) for _ in range(20)])

    assert abs(Counter(await take_owners(queue, 20))["early"] - 10) <= 1


async def test_sending_jobs_one_at_a_time_gains_nothing(queue: JobQueue, make_job: MakeJob) -> None:
    await queue.put([make_job(owner="many", row_steps=8) for _ in range(40)])
    owners = []
    for _ in range(20):
        if owners[-1:] != ["many"]:  # its job was taken: it sends the next
            await queue.put([make_job(owner="one", row_steps=8)])
        owners += await take_owners(queue, 1)

    assert abs(Counter(owners)["one"] - 10) <= 1


async def test_an_owner_s_jobs_run_by_deadline_and_then_by_arrival(
    queue: JobQueue, make_job: MakeJob
) -> None:
    now = time.time()
    offsets = [300, 100, None, 200, 100, None, 300]
    deadlines = [None if offset is None else now + offset for offset in offsets]
    jobs = [make_job(deadline_at=deadline) for deadline in deadlines]
    for start in range(0, len(jobs), 3):
        await queue.put(jobs[start : start + 3])

    taken = [d.job for d in await queue.take("w", 4, 0) + await queue.take("w", 4, 0)]

    assert taken == [jobs[i] for i in (1, 4, 3, 0, 6, 2, 5)]


async def test_jobs_of_one_millisecond_keep_their_order(queue: JobQueue, make_job: MakeJob) -> None:
    """Their entries' second numbers pass from one digit to two and three."""
    jobs = [make_job() for _ in range(150)]
    await queue.put(jobs)

    assert [d.job.id for d in await queue.take("w", 150, 0)] == [job.id for job in jobs]


async def test_each_priority_is_fair_on_its_own(queue: JobQueue, make_job: MakeJob) -> None:
    await queue.put([make_job(owner="a", row_steps=100) for _ in range(4)])
    await take_owners(queue, 4)
    await queue.put([make_job(owner=o, priority="batch") for o in ("a", "a", "b", "b")])

    assert sorted(await take_owners(queue, 2)) == ["a", "b"]


async def test_beyond_the_credit_only_interactive_jobs_are_handed_out(
    queue: JobQueue, make_job: MakeJob
) -> None:
    await queue.put([make_job(priority="batch") for _ in range(6)])
    await queue.put([make_job() for _ in range(3)])

    first = [d.job.priority for d in await queue.take("w", 2, 0, urgent_credit=4)]
    second = [d.job.priority for d in await queue.take("w", 0, 0, urgent_credit=2)]
    third = [d.job.priority for d in await queue.take("w", 2, 0, urgent_credit=9)]

    assert first == ["interactive"] * 3
    assert second == []
    assert third == ["batch", "batch"]
    assert await queue.take("w", 0, 0, urgent_credit=0) == []
    with pytest.raises(ValueError, match="urgent_credit is 1"):
        await queue.take("w", 2, 0, urgent_credit=1)


async def test_batch_keeps_its_share_beside_urgent_jobs(queue: JobQueue, make_job: MakeJob) -> None:
    await queue.put([make_job(priority="batch") for _ in range(12)])
    await queue.put([make_job() for _ in range(48)])

    order = []
    for _ in range(12):
        order += [d.job.priority for d in await queue.take("w", 1, 0, urgent_credit=4)]

    assert order.count("batch") >= 9


async def test_what_is_given_back_costs_nothing_and_keeps_its_place(
    queue: JobQueue, make_job: MakeJob
) -> None:
    first, second = make_job(owner="a", row_steps=40), make_job(owner="a", row_steps=40)
    await queue.put([first, second, make_job(owner="b", row_steps=40)])
    for _ in range(3):
        deliveries = await queue.take("leaving", 1, 0)
        assert [d.job for d in deliveries] == [first]
        await queue.give_back("leaving", deliveries)

    order = [(await queue.take("w", 1, 0))[0].job for _ in range(3)]

    assert order[0] == first
    assert [job.owner for job in order] == ["a", "b", "a"]


async def test_depth_tells_the_cost_of_what_waits(queue: JobQueue, make_job: MakeJob) -> None:
    await queue.put([make_job(row_steps=30), make_job(row_steps=12, owner="b")])
    cancelled = make_job(priority="batch", row_steps=7)
    await queue.put([cancelled, make_job(priority="batch", row_steps=5)])
    await queue.cancel(cancelled.id)
    [taken] = await queue.take("w", 0, 0, urgent_credit=1)

    depth = await queue.depth()
    assert (depth["interactive"].row_steps, depth["batch"].row_steps) == (12, 5)
    await queue.give_back("w", [taken])
    assert (await queue.depth())["interactive"].row_steps == 42


async def test_nothing_is_left_when_all_jobs_are_gone(
    queue: JobQueue, make_queue: Callable[..., JobQueue], client: Redis, make_job: MakeJob
) -> None:
    """Every way out of the queue: an end, a cancel, a deadline, a dead letter's requeue."""
    owners = itertools.cycle(["a", "b", ""])
    jobs = [make_job(owner=next(owners), row_steps=9) for _ in range(9)]
    await queue.put(jobs)
    await queue.put([make_job(owner="late", deadline_at=time.time() - 1)])
    await queue.cancel(jobs[4].id)
    deliveries = await queue.take("w", 5, 0)
    await queue.give_back("w", deliveries[:2])
    deliveries = deliveries[2:] + await queue.take("w", 9, 0)
    for delivery in deliveries:
        assert await queue.finish("w", delivery, [], {})

    depth = (await queue.depth())["interactive"]
    assert (depth.waiting, depth.row_steps, depth.oldest_s) == (0, 0, 0)
    root = queue._root
    left = {key.decode().removeprefix(root) async for key in client.scan_iter(f"{root}:*")}
    kinds = {name.split(":")[1] for name in left}
    assert not kinds & {"waiting", "due", "turns", "payload"}


async def test_a_waiting_entry_that_somebody_deleted_does_no_harm(
    queue: JobQueue, client: Redis, stream_of: Callable[[str], str], make_job: MakeJob
) -> None:
    left = make_job(deadline_at=time.time() + 60)
    await queue.put([make_job(deadline_at=time.time() + 30), left])
    [(entry, _), _] = await client.xrange(stream_of("interactive"))
    await client.xdel(stream_of("interactive"), entry)

    assert [d.job for d in await queue.take("w", 4, 0)] == [left]
    assert (await queue.depth())["interactive"].waiting == 0


async def test_jobs_past_their_deadline_make_room_for_new_ones(
    make_queue: Callable[..., JobQueue], make_job: MakeJob
) -> None:
    queue = make_queue(max_waiting=2)
    late = [make_job(deadline_at=time.time() - 1, owner=o) for o in "ab"]
    await queue.put(late)

    await queue.put([make_job(), make_job()])

    for job in late:
        outcome = await queue.wait(job.id, 5)
        assert outcome.error is not None
        assert outcome.error.code == "deadline_exceeded"


@pytest.mark.parametrize("redis_server", ["redis-server"], indirect=True)  # 6.2 has no lag
async def test_autoscalers_read_what_waits_as_lag(
    queue: JobQueue,
    client: Redis,
    stream_of: Callable[[str], str],
    make_job: MakeJob,
) -> None:
    async def lag() -> int | None:
        [group] = await client.xinfo_groups(stream_of("interactive"))
        found = group["lag"]
        return None if found is None else int(found)

    jobs = [make_job(deadline_at=time.time() + 100 - i) for i in range(8)]
    await queue.put(jobs)
    assert await lag() == 8
    deliveries = await queue.take("w", 3, 0)
    await queue.finish("w", deliveries[0], [], {})
    assert await lag() == 5
    await queue.cancel(jobs[2].id)
    await queue.give_back("w", deliveries[1:2])
    await queue.put([make_job()])
    assert await lag() == 6
