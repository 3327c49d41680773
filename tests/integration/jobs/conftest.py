"""A queue on a real Redis, jobs to put into it, and ways to make time pass without waiting."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from service.jobs.connection import connect
from service.jobs.job import Delivery, GenerateParams, Job
from service.jobs.queue import JobQueue
from tests.integration.jobs.servers import PROGRAMS, RedisProcess, find_program

STATE_DEADLINE_S = 20


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """Jobs named job-0, job-1, ... whose seed is their number."""
    numbers = itertools.count()

    def make(**fields: Any) -> Job:
        number = next(numbers)
        params = GenerateParams(prompt="a red circle", seed=number, steps=4, guidance_scale=2)
        defaults: dict[str, Any] = {
            "id": f"job-{number}",
            "task": "generate",
            "model": "stickers",
            "params": params,
            "created_at": time.time(),
        }
        return Job(**{**defaults, **fields})

    return make


@pytest.fixture(params=PROGRAMS)
def server(
    request: pytest.FixtureRequest, require_tool: Callable[[str], str]
) -> Iterator[RedisProcess]:
    """A Redis of a test's own, to be stopped and filled."""
    with TemporaryDirectory(prefix="rpiae-redis-") as folder:
        running = RedisProcess(find_program(request.param, require_tool), Path(folder))
        running.start()
        yield running
        running.kill()


@pytest_asyncio.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    redis = connect(redis_url)
    yield redis
    await redis.aclose()


@pytest_asyncio.fixture
async def make_queue(client: Redis, queue_name: str) -> AsyncIterator[Callable[..., JobQueue]]:
    """Further objects for the same queue, as other processes would have them."""
    made = []

    def make(**options: Any) -> JobQueue:
        queue = JobQueue(client, **{"name": queue_name, "lease_s": 60, **options})
        made.append(queue)
        return queue

    yield make
    for queue in made:
        await queue.close()


@pytest_asyncio.fixture
async def queue(make_queue: Callable[..., JobQueue]) -> JobQueue:
    opened = make_queue()
    await opened.open()
    return opened


@pytest.fixture
def stream_of(queue_name: str) -> Callable[[str], str]:
    """Name of the stream of a priority."""
    return lambda priority: f"rpiae:{{{queue_name}}}:stream:{priority}"


@pytest.fixture
def let_lease_end(
    client: Redis, stream_of: Callable[[str], str]
) -> Callable[[str, Delivery], Awaitable[None]]:
    """Make a worker's lease look two minutes old."""

    async def age(worker: str, delivery: Delivery) -> None:
        stream = stream_of(delivery.job.priority)
        entries = [delivery.entry_id]
        await client.xclaim(stream, "workers", worker, 0, entries, idle=120_000, justid=True)

    return age


@pytest.fixture
def eventually() -> Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]:
    """Wait for a state, at most STATE_DEADLINE_S."""

    async def wait_for(reached: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(STATE_DEADLINE_S):
            while not await reached():
                await asyncio.sleep(0.01)

    return wait_for
