"""A Redis that is full, cannot write to its disk, or lets us not in: refused at once, no hang."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from service.errors import QueueUnavailable
from service.jobs.connection import connect
from service.jobs.job import Job, Status
from service.jobs.queue import JobQueue
from tests.integration.jobs.servers import RedisProcess

MakeJob = Callable[..., Job]

AT_ONCE_S = 1.5  # below the time for which a broken connection is retried


@pytest_asyncio.fixture
async def own_client(server: RedisProcess) -> AsyncIterator[Redis]:
    redis = connect(server.url)
    yield redis
    await redis.aclose()


@pytest_asyncio.fixture
async def own_queue(own_client: Redis, queue_name: str) -> AsyncIterator[JobQueue]:
    queue = JobQueue(own_client, name=queue_name)
    await queue.open()
    yield queue
    await queue.close()


async def test_a_master_that_lacks_its_replicas_refuses_jobs(
    own_queue: JobQueue, own_client: Redis, make_job: MakeJob
) -> None:
    await own_client.config_set("min-replicas-to-write", 1)
    with pytest.raises(QueueUnavailable, match="replicas are away"):
        await own_queue.put([make_job()])
    await own_client.config_set("min-replicas-to-write", 0)
    await own_queue.put([make_job()])


async def test_a_redis_that_wants_another_password_says_so(
    own_client: Redis, server: RedisProcess, queue_name: str, make_job: MakeJob
) -> None:
    await own_client.config_set("requirepass", "secret")
    for url in (server.url, f"{server.url}?password=wrong"):
        client = connect(url)
        queue = JobQueue(client, name=queue_name)
        with refused_at_once("user and password", retry_after=False):
            await queue.put([make_job()])
        await client.aclose()


@contextmanager
def refused_at_once(reason: str, *, retry_after: bool = True) -> Iterator[None]:
    started = time.monotonic()
    with pytest.raises(QueueUnavailable, match=reason) as refused:
        yield
    assert (refused.value.status, refused.value.code) == (503, "queue_unavailable")
    assert bool(refused.value.retry_after_s) == retry_after
    assert time.monotonic() - started < AT_ONCE_S


async def test_a_full_memory_refuses_jobs_and_lets_those_inside_end(
    own_queue: JobQueue, own_client: Redis, make_job: MakeJob
) -> None:
    queue = own_queue
    jobs = [make_job(owner=owner) for owner in "abcd"]
    await queue.put(jobs, {job.id: b"source" for job in jobs})
    [running] = await queue.take("w", 1, 0)
    used = (await own_client.info("memory"))["used_memory"]
    await own_client.config_set("maxmemory", used // 2)

    with refused_at_once("memory is full"):
        await queue.put([make_job()], {})
    with refused_at_once("memory is full"):
        await queue.publish(running.job.id, "progress", {"step": 1})

    assert (await queue.depth())["interactive"].waiting == 3
    await queue.announce("w", {"model": "stickers"}, 60)
    assert await queue.workers() == {"w": {"model": "stickers"}}
    assert await queue.renew("w", [running]) == set()
    assert await queue.finish("w", running, [b"picture"], {"seed": 1})
    assert (await queue.wait(running.job.id, 5)).outputs == [b"picture"]
    assert await queue.cancel(jobs[3].id) is Status.CANCELLED
    deliveries = await queue.take("w", 2, 0)
    assert [d.payload for d in deliveries] == [b"source"] * 2
    assert await queue.cancel(deliveries[0].job.id) is Status.RUNNING
    assert await queue.finish_cancelled("w", deliveries[0])
    await queue.give_back("w", deliveries[1:])
    [last] = await queue.take("w", 2, 0)
    assert await queue.finish("w", last, [b"picture"], {})

    await own_client.config_set("maxmemory", 0)
    await queue.put([make_job()])
    assert len(await queue.take("w", 2, 0)) == 1


async def test_a_disk_that_cannot_be_written_refuses_jobs(
    own_queue: JobQueue, own_client: Redis, make_job: MakeJob
) -> None:
    queue = own_queue
    job = make_job()
    await queue.put([job])
    [running] = await queue.take("w", 1, 0)
    await fail_to_save(own_client)

    with refused_at_once("cannot write to its disk"):
        await queue.put([make_job()])
    with refused_at_once("cannot write to its disk"):
        await queue.finish("w", running, [b"picture"], {})
    with refused_at_once("cannot write to its disk"):
        await queue.take("w", 1, 0)
    assert await queue.outcome(job.id) is None

    await own_client.config_set("stop-writes-on-bgsave-error", "no")
    assert await queue.finish("w", running, [b"picture"], {})
    assert (await queue.wait(job.id, 5)).outputs == [b"picture"]


async def fail_to_save(client: Redis) -> None:
    """Make a background save fail: its file's name is that of a folder."""
    folder = Path((await client.config_get("dir"))["dir"])
    name = (await client.config_get("dbfilename"))["dbfilename"]
    (folder / name / "in the way").mkdir(parents=True)
    await client.config_set("save", "1 1")
    deadline = time.monotonic() + 20
    while (await client.info("persistence"))["rdb_last_bgsave_status"] == "ok":
        assert time.monotonic() < deadline
        info = await client.info("persistence")
        if not info["rdb_bgsave_in_progress"]:
            await client.bgsave()
