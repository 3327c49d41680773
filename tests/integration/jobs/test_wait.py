"""Waiting for jobs and following their events, many callers over one connection."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from service.errors import DeadlineExceeded, ErrorBody, InvalidRequest, NotFound
from service.jobs.connection import connect
from service.jobs.job import Event, Job, Status
from service.jobs.queue import JobQueue

MakeJob = Callable[..., Job]


async def test_waiting_before_and_after_the_end_gives_the_same(
    queue: JobQueue, make_job: MakeJob
) -> None:
    job = make_job()
    await queue.put([job])
    early = asyncio.create_task(queue.wait(job.id, 20))
    [delivery] = await queue.take("w", 1, 0)
    assert await queue.outcome(job.id) is None
    await queue.fail("w", delivery, ErrorBody("too large", code="out_of_memory", param="size"))

    outcome = await early
    assert outcome == await queue.wait(job.id, 20) == await queue.outcome(job.id)
    assert outcome.status is Status.FAILED
    assert outcome.error == ErrorBody("too large", code="out_of_memory", param="size")


async def test_a_job_that_was_expected_is_looked_for_once(
    queue: JobQueue, client: Redis, make_job: MakeJob
) -> None:
    async def num_looks() -> int:
        stats: Any = await client.info("commandstats")
        return int(stats["cmdstat_lrange"]["calls"])

    opening, early, late = (make_job() for _ in range(3))
    async with queue.expecting([opening.id]):  # the watch's first connection makes all look
        await queue.put([opening])
        await queue.cancel(opening.id)
        await queue.wait(opening.id, 20)
    async with queue.expecting([early.id, late.id]):
        await queue.put([early, late])
        delivery, other = await queue.take("w", 2, 0)
        await queue.finish("w", delivery, [b"early"], {})
        before = await num_looks()
        assert (await queue.wait(early.id, 20)).outputs == [b"early"]
        waiting = asyncio.create_task(queue.wait(late.id, 20))
        await asyncio.sleep(0.05)
        await queue.finish("w", other, [b"late"], {})
        assert (await waiting).outputs == [b"late"]
        assert await num_looks() == before + 2
    assert (await queue.wait(early.id, 20)).outputs == [b"early"]  # expected no more


async def test_an_expected_end_is_not_missed_when_connections_break(
    queue: JobQueue, client: Redis, make_job: MakeJob
) -> None:
    job = make_job()
    async with queue.expecting([job.id]):
        await queue.put([job])
        waiting = asyncio.create_task(queue.wait(job.id, 15))
        [delivery] = await queue.take("w", 1, 0)
        await client.client_kill_filter(_type="normal", skipme=True)
        await queue.finish("w", delivery, [b"picture"], {})
        assert (await waiting).outputs == [b"picture"]


async def test_the_record_of_a_job(queue: JobQueue, make_job: MakeJob) -> None:
    job = make_job(owner="key-hash", request_id="r-1", deadline_at=4e9, traceparent="00-ab-cd-01")
    await queue.put([job])
    assert await queue.job(job.id) == (job, Status.QUEUED)
    await queue.take("w", 1, 0)
    assert await queue.job(job.id) == (job, Status.RUNNING)
    assert await queue.job("never-put") is None


async def test_a_job_that_takes_too_long(queue: JobQueue, make_job: MakeJob) -> None:
    job = make_job()
    await queue.put([job])
    with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
        await queue.wait(job.id, 0.05)
    assert await queue.job(job.id) == (job, Status.QUEUED)


async def test_an_unknown_job(queue: JobQueue) -> None:
    with pytest.raises(NotFound, match="never-put"):
        await queue.wait("never-put", 5)
    with pytest.raises(NotFound, match="never-put"):
        await anext(queue.events("never-put"))
    assert await queue.outcome("never-put") is None


async def test_two_hundred_callers_wait_over_one_connection(
    redis_url: str, queue: JobQueue, client: Redis, queue_name: str, make_job: MakeJob
) -> None:
    jobs = [make_job() for _ in range(200)]
    await queue.put(jobs)
    own = connect(f"{redis_url}?client_name={queue_name}", max_connections=4)
    gateway = JobQueue(own, name=queue_name)
    waiting = [asyncio.create_task(gateway.wait(job.id, 50)) for job in jobs]
    following = [asyncio.create_task(collect(gateway, job.id)) for job in jobs[:50]]
    deliveries = await queue.take("w", 200, 0)
    for delivery in deliveries[:100]:
        assert await queue.finish("w", delivery, [delivery.job.id.encode()], {})
    first = await asyncio.gather(*waiting[:100])

    connections = [c for c in await client.client_list() if c["name"] == queue_name]
    assert len(connections) <= 4
    assert sum(c["cmd"] == "xread" for c in connections) == 1
    for delivery in deliveries[100:]:
        assert await queue.finish("w", delivery, [delivery.job.id.encode()], {})
    outcomes = first + await asyncio.gather(*waiting[100:])
    assert [outcome.outputs for outcome in outcomes] == [[job.id.encode()] for job in jobs]
    for events in await asyncio.gather(*following):
        assert [event.kind for event in events] == ["queued", "started", "succeeded"]
    await gateway.close()
    await own.aclose()


async def collect(queue: JobQueue, job_id: str, after: str = "0") -> list[Event]:
    return [event async for event in queue.events(job_id, after)]


async def test_the_progress_of_many_jobs_is_published_at_once(
    queue: JobQueue, make_job: MakeJob
) -> None:
    running, ended, waiting = (make_job() for _ in range(3))
    await queue.put([running, ended, waiting])
    [_, delivery] = await queue.take("w", 2, 0)
    await queue.finish("w", delivery, [b"picture"], {})
    await queue.publish_progress({running.id: (3, 4), ended.id: (4, 4), "never-put": (1, 4)})
    await queue.publish_progress({})

    views = await queue.views([running.id, ended.id, waiting.id, "never-put"])
    assert [(view.step, view.num_steps) for view in views if view] == [(3, 4), (4, 4), (0, 4)]
    assert [event.kind async for event in queue.events(ended.id)] == [
        "queued",
        "started",
        "succeeded",
    ]


async def test_events_can_be_read_again_from_any_of_them(
    queue: JobQueue, make_job: MakeJob
) -> None:
    job = make_job()
    await queue.put([job])
    live = asyncio.create_task(collect(queue, job.id))
    [delivery] = await queue.take("w", 1, 0)
    await queue.publish(job.id, "progress", {"step": 1, "steps": 4})
    await queue.publish(job.id, "preview", {"step": 2}, b"\x89PNG")
    await queue.finish("w", delivery, [b"picture"], {"seed": 5})
    await queue.publish(job.id, "progress", {"step": 9})  # late: the job has ended

    events = await live
    assert [event.kind for event in events] == [
        "queued",
        "started",
        "progress",
        "preview",
        "succeeded",
    ]
    assert events[2].data == {"step": 1, "steps": 4}
    assert [event.blob for event in events] == [None, None, None, b"\x89PNG", None]
    assert events[-1].data == {"seed": 5}
    for known, event in enumerate(events):
        assert await collect(queue, job.id, event.id) == events[known + 1 :]


async def test_events_reach_every_follower_as_they_happen(
    queue: JobQueue, make_job: MakeJob
) -> None:
    job = make_job()
    await queue.put([job])
    followers = [queue.events(job.id) for _ in range(3)]
    assert [(await anext(f)).kind for f in followers] == ["queued"] * 3
    await queue.take("w", 1, 0)
    assert [(await anext(f)).kind for f in followers] == ["started"] * 3
    for step in range(3):
        coming = [asyncio.create_task(anext(f)) for f in followers]
        await queue.publish(job.id, "progress", {"step": step})
        assert [(await event).data for event in coming] == [{"step": step}] * 3
    for follower in followers:
        await follower.aclose()


@pytest.mark.parametrize("after", ["", "x", "1-", "-1", "1-2-3", "9" * 30, "1 2"])
async def test_what_is_no_event_id_is_refused(
    queue: JobQueue, make_job: MakeJob, after: str
) -> None:
    job = make_job()
    await queue.put([job])
    with pytest.raises(InvalidRequest) as refused:
        await anext(queue.events(job.id, after))
    assert refused.value.param == "Last-Event-ID"


async def test_a_caller_can_be_cancelled_at_any_moment(queue: JobQueue, make_job: MakeJob) -> None:
    job = make_job()
    await queue.put([job])
    for num_turns in range(40):
        callers = [
            asyncio.create_task(queue.wait(job.id, None)),
            asyncio.create_task(collect(queue, job.id)),
        ]
        for _ in range(num_turns):
            await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        ended, _ = await asyncio.wait(callers, timeout=20)
        assert len(ended) == 2


async def test_results_expire(
    make_queue: Callable[..., JobQueue],
    make_job: MakeJob,
    eventually: Callable[..., Awaitable[None]],
) -> None:
    queue = make_queue(result_ttl_s=0.05)
    job = make_job()
    await queue.put([job])
    [delivery] = await queue.take("w", 1, 0)
    await queue.finish("w", delivery, [b"picture"], {})

    async def forgotten() -> bool:
        return await queue.job(job.id) is None

    await eventually(forgotten)
    assert await queue.outcome(job.id) is None
    with pytest.raises(NotFound):
        await queue.wait(job.id, 5)


async def test_announced_workers_expire_unless_they_go_on(
    queue: JobQueue, eventually: Callable[..., Awaitable[None]]
) -> None:
    await queue.announce("short", {"model": "stickers", "active_rows": 3}, 0.05)
    await queue.announce("long", {"model": "stickers", "active_rows": 0}, 600)

    async def only_one() -> bool:
        return set(await queue.workers()) == {"long"}

    await eventually(only_one)
    await queue.announce("long", {"model": "stickers", "active_rows": 8}, 600)
    assert await queue.workers() == {"long": {"model": "stickers", "active_rows": 8}}
    await queue.announce("long", {}, 0)
    assert await queue.workers() == {}
    assert await queue.ping()


async def test_a_worker_that_left_stays_known_only_while_it_holds_jobs(
    queue: JobQueue, client: Redis, stream_of: Callable[[str], str], make_job: MakeJob
) -> None:
    await queue.put([make_job(), make_job()])
    [idle] = await queue.take("tidy", 1, 0)
    await queue.take("crashed", 1, 0)
    assert await queue.finish("tidy", idle, [], {})
    for worker in ("tidy", "crashed"):
        await queue.announce(worker, {}, 60)
        await queue.announce(worker, {}, 0)

    [left] = await client.xinfo_consumers(stream_of("interactive"), "workers")
    assert (left["name"], left["pending"]) == (b"crashed", 1)
