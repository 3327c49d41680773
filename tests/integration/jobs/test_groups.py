"""Jobs that are put together, and requests that are repeated with the same key."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from service.errors import Conflict, ErrorBody, Overloaded
from service.jobs.group import Group
from service.jobs.job import Delivery, Job
from service.jobs.queue import JobQueue

MakeJob = Callable[..., Job]


def make_group(jobs: list[Job], **fields: Any) -> Group:
    defaults: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "owner": "key-hash",
        "job_ids": tuple(job.id for job in jobs),
        "created_at": time.time(),
        "answer": {"endpoint": "images", "n": len(jobs), "nested": {"ü": [1, None]}},
    }
    return Group(**{**defaults, **fields})


async def finish_all(queue: JobQueue) -> None:
    for delivery in await queue.take("w", 99, 0):
        assert await queue.finish("w", delivery, [b"picture"], {})


async def test_a_group_comes_back_as_it_was(queue: JobQueue, make_job: MakeJob) -> None:
    jobs = [make_job() for _ in range(3)]
    group = make_group(jobs, idempotency_key="my key: {1}", fingerprint="f")

    assert await queue.put(jobs, group=group) == group
    assert await queue.group(group.id) == group
    assert await queue.group("never-put") is None
    assert await queue.put([make_job()]) is None


async def test_a_repeat_puts_nothing_and_gets_the_first_group(
    queue: JobQueue, make_job: MakeJob
) -> None:
    first = [make_job(), make_job()]
    group = make_group(first, idempotency_key="k", fingerprint="same")
    await queue.put(first, group=group)
    again = [make_job(), make_job()]
    repeat = make_group(again, idempotency_key="k", fingerprint="same")

    assert await queue.put(again, group=repeat) == group
    assert await queue.job(again[0].id) is None
    assert await queue.group(repeat.id) is None
    await finish_all(queue)
    assert await queue.put(again, group=repeat) == group  # also when it has ended
    assert (await queue.depth())["interactive"].waiting == 0


async def test_fifty_at_once_put_one(
    make_queue: Callable[..., JobQueue], queue: JobQueue, make_job: MakeJob
) -> None:
    gateways = [make_queue() for _ in range(5)]
    groups = [
        make_group([make_job()], idempotency_key="k", fingerprint="same", id=f"group-{i}")
        for i in range(50)
    ]
    jobs = {group.id: make_job(id=group.job_ids[0]) for group in groups}

    effective = await asyncio.gather(
        *(gateways[i % 5].put([jobs[g.id]], group=g) for i, g in enumerate(groups))
    )

    assert len({group.id for group in effective if group}) == 1
    assert [d.job.id for d in await queue.take("w", 60, 0)] == list(effective[0].job_ids)  # type: ignore[union-attr]


async def test_another_request_with_the_same_key_is_a_conflict(
    queue: JobQueue, make_job: MakeJob
) -> None:
    job, other = make_job(), make_job()
    await queue.put([job], group=make_group([job], idempotency_key="k", fingerprint="one"))

    with pytest.raises(Conflict) as refused:
        await queue.put([other], group=make_group([other], idempotency_key="k", fingerprint="two"))

    assert (refused.value.status, refused.value.code) == (409, "idempotency_key_reused")
    assert await queue.job(other.id) is None


async def test_keys_of_different_owners_are_different_keys(
    queue: JobQueue, make_job: MakeJob
) -> None:
    for owner, fingerprint in (("a", "one"), ("b", "two"), ("", "three")):
        job = make_job()
        group = make_group([job], owner=owner, idempotency_key="k", fingerprint=fingerprint)
        assert await queue.put([job], group=group) == group


async def test_a_full_queue_still_answers_a_repeat_and_keeps_no_key_of_what_it_refused(
    make_queue: Callable[..., JobQueue], make_job: MakeJob
) -> None:
    queue = make_queue(max_waiting=1)
    job, refused = make_job(), make_job()
    group = make_group([job], idempotency_key="k", fingerprint="f")
    later = make_group([refused], idempotency_key="later", fingerprint="f")
    await queue.put([job], group=group)
    with pytest.raises(Overloaded):
        await queue.put([refused], group=later)
    assert await queue.group(later.id) is None

    assert await queue.put([job], group=group) == group
    await queue.take("w", 1, 0)
    assert await queue.put([refused], group=later) == later


@pytest.mark.parametrize("running", [False, True])
async def test_a_cancelled_group_does_not_block_its_key(
    queue: JobQueue, make_job: MakeJob, running: bool
) -> None:
    jobs, again = [make_job(), make_job()], [make_job()]
    await queue.put(jobs, group=make_group(jobs, idempotency_key="k", fingerprint="one"))
    if running:
        await queue.take("w", 2, 0)
    await queue.cancel(jobs[1].id)
    repeat = make_group(again, idempotency_key="k", fingerprint="two")

    assert await queue.put(again, group=repeat) == repeat


@pytest.mark.parametrize(
    ("error", "is_repeated"),
    [
        (ErrorBody("the model has no such size", type="invalid_request_error"), True),
        (ErrorBody("the worker failed", type="server_error"), False),
    ],
)
async def test_only_a_failure_by_the_request_s_own_fault_answers_its_repeats(
    queue: JobQueue, make_job: MakeJob, error: ErrorBody, is_repeated: bool
) -> None:
    job, other = make_job(), make_job()
    group = make_group([job], idempotency_key="k", fingerprint="f")
    await queue.put([job], group=group)
    [delivery] = await queue.take("w", 1, 0)
    await queue.fail("w", delivery, error)

    repeat = make_group([other], idempotency_key="k", fingerprint="f")
    assert await queue.put([other], group=repeat) == (group if is_repeated else repeat)


async def test_a_group_goes_with_its_jobs(
    make_queue: Callable[..., JobQueue],
    make_job: MakeJob,
    eventually: Callable[..., Awaitable[None]],
) -> None:
    queue = make_queue(result_ttl_s=0.3)
    jobs = [make_job(), make_job()]
    group = make_group(jobs, idempotency_key="k", fingerprint="one")
    await queue.put(jobs, group=group)
    first, second = await queue.take("w", 2, 0)
    await queue.finish("w", first, [], {})

    async def first_is_gone() -> bool:
        return await queue.job(first.job.id) is None

    await eventually(first_is_gone)
    assert await queue.group(group.id) == group  # the second still runs
    await queue.finish("w", second, [], {})

    async def group_is_gone() -> bool:
        return await queue.group(group.id) is None

    await eventually(group_is_gone)
    again = make_job()
    repeat = make_group([again], idempotency_key="k", fingerprint="two")
    assert await queue.put([again], group=repeat) == repeat


async def test_a_group_stays_as_long_as_a_waiting_job_may(
    queue: JobQueue, client: Redis, make_job: MakeJob
) -> None:
    job = make_job()
    group = make_group([job])
    await queue.put([job], group=group)
    key = f"{queue._root}:group:{group.id}"
    record = f"{queue._root}:job:{job.id}"
    assert await client.pttl(key) > await client.pttl(record) > 86_000_000
    await finish_all(queue)
    assert 0 < await client.pttl(key) <= 600_000


async def test_a_put_whose_answer_got_lost_can_be_repeated(
    queue: JobQueue, make_job: MakeJob
) -> None:
    job = make_job()
    group = make_group([job], idempotency_key="k", fingerprint="f")
    assert await queue.put([job], {job.id: b"source"}, group) == group
    assert await queue.put([job], {job.id: b"source"}, group) == group

    deliveries = await queue.take("w", 9, 0)
    assert [d.payload for d in deliveries] == [b"source"]


async def test_a_dead_letter_keeps_its_group_for_its_return(
    make_queue: Callable[..., JobQueue],
    client: Redis,
    make_job: MakeJob,
    let_lease_end: Callable[[str, Delivery], Awaitable[None]],
) -> None:
    queue = make_queue(max_deliveries=1)
    job = make_job()
    group = make_group([job])
    await queue.put([job], group=group)
    [delivery] = await queue.take("dead", 1, 0)
    await let_lease_end("dead", delivery)
    assert await queue.take("alive", 1, 0) == []

    key = f"{queue._root}:group:{group.id}"
    assert await client.pttl(key) > 600_000_000
    assert await queue.requeue(job.id)
    await finish_all(queue)
    assert await queue.group(group.id) == group
    assert (await queue.wait(job.id, 5)).outputs == [b"picture"]
