"""Redis goes away in the middle of the work: its data is kept on disk, or all of it is lost."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from service.errors import JobFailed, QueueUnavailable
from service.jobs.connection import connect
from service.jobs.job import Job
from service.jobs.queue import JobQueue
from tests.integration.jobs.servers import PROGRAMS, DurableRedis, find_program

MakeJob = Callable[..., Job]


@pytest.fixture(params=PROGRAMS)
def server(
    request: pytest.FixtureRequest, require_tool: Callable[[str], str]
) -> Iterator[DurableRedis]:
    program = find_program(request.param, require_tool)
    with tempfile.TemporaryDirectory(prefix="rpiae-redis-") as folder:
        durable = DurableRedis(program, Path(folder))
        durable.start()
        yield durable
        durable.kill()


@pytest_asyncio.fixture
async def restartable(server: DurableRedis, queue_name: str) -> AsyncIterator[JobQueue]:
    client = connect(server.url)
    queue = JobQueue(client, name=queue_name)
    await queue.open()
    yield queue
    await queue.close()
    await client.aclose()


async def test_everybody_goes_on_after_a_restart(
    restartable: JobQueue, server: DurableRedis, make_job: MakeJob
) -> None:
    queue = restartable
    running, waiting = make_job(), make_job()
    await queue.put([running, waiting], {running.id: b"source"})
    [delivery] = await queue.take("w", 1, 0)
    outcomes = [asyncio.create_task(queue.wait(job.id, 50)) for job in (running, waiting)]
    events = queue.events(running.id)
    assert (await anext(events)).kind == "queued"

    server.kill()
    starting = asyncio.get_running_loop().run_in_executor(None, server.start)

    # Each call meets a server that is away, starting, or loading.
    assert await queue.renew("w", [delivery]) == set()
    await starting
    assert await queue.finish("w", delivery, [b"first"], {})
    [delivery] = await queue.take("w", 4, 20_000)
    assert await queue.finish("w", delivery, [b"second"], {})
    assert [(await outcome).outputs for outcome in outcomes] == [[b"first"], [b"second"]]
    assert [event.kind async for event in events] == ["started", "succeeded"]


async def test_a_blocked_take_survives_a_restart(
    restartable: JobQueue,
    server: DurableRedis,
    make_job: MakeJob,
    eventually: Callable[..., Awaitable[None]],
) -> None:
    blocked = asyncio.create_task(restartable.take("w", 1, 60_000))
    await eventually(restartable.ping)
    server.kill()
    server.start()
    await eventually(restartable.ping)
    job = make_job()
    await restartable.put([job])
    assert [d.job for d in await blocked] == [job]


async def test_a_server_that_stays_away_is_reported_and_waited_for(
    restartable: JobQueue,
    server: DurableRedis,
    make_job: MakeJob,
    eventually: Callable[..., Awaitable[None]],
) -> None:
    job = make_job()
    await restartable.put([job])
    waiting = asyncio.create_task(restartable.wait(job.id, 50))
    server.kill()
    with pytest.raises(QueueUnavailable) as refused:
        await restartable.put([make_job()])
    assert refused.value.status == 503
    assert not await restartable.ping()

    server.start()
    await eventually(restartable.ping)
    [delivery] = await restartable.take("w", 1, 20_000)
    await restartable.finish("w", delivery, [b"picture"], {})
    assert (await waiting).outputs == [b"picture"]


async def test_a_server_that_lost_its_data_is_a_fresh_queue(
    restartable: JobQueue,
    server: DurableRedis,
    make_job: MakeJob,
    eventually: Callable[..., Awaitable[None]],
) -> None:
    lost = make_job()
    await restartable.put([lost])
    [delivery] = await restartable.take("w", 1, 0)
    waiting = asyncio.create_task(restartable.wait(lost.id, 50))
    client = connect(server.url)

    async def waiter_saw_the_job() -> bool:
        return "cmdstat_hmget" in await client.info("commandstats")

    await eventually(waiter_saw_the_job)
    await client.aclose()
    server.kill()
    with pytest.raises(QueueUnavailable):
        await restartable.depth()
    server.lose_everything()
    server.start()
    await eventually(restartable.ping)

    assert await restartable.renew("w", [delivery]) == {lost.id}
    assert not await restartable.finish("w", delivery, [b"late"], {})
    job = make_job()
    await restartable.put([job])
    [delivery] = await restartable.take("w", 1, 20_000)
    assert await restartable.finish("w", delivery, [b"picture"], {})
    assert (await restartable.wait(job.id, 20)).outputs == [b"picture"]
    with pytest.raises(JobFailed, match="lost its data"):
        await waiting


async def test_groups_are_made_where_they_are_missing(
    restartable: JobQueue, server: DurableRedis, make_job: MakeJob
) -> None:
    client = connect(server.url)
    job = make_job()
    for call in (
        lambda: restartable.take("w", 1, 0),
        lambda: restartable.put([job]),
        restartable.depth,
        lambda: restartable.take("w", 1, 0),
    ):
        await client.flushall()
        await call()
    await client.aclose()
