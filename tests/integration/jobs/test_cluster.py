"""A cluster: all of a queue lies on one node, and is found there, also after it has moved."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError

from service.jobs.group import Group
from service.jobs.job import Job
from tests.integration.jobs.load import Load, is_served, opened
from tests.integration.jobs.servers import (
    PROGRAMS,
    RedisProcess,
    find_program,
    free_cluster_port,
)

MakeJob = Callable[..., Job]

NUM_SLOTS = 16384
OPTIONS = (
    "--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--repl-diskless-sync-delay", "0",
)  # fmt: skip
HOME = 0  # the master that has the queue; node 3 is its replica


async def ask(port: int, *command: object) -> object:
    """Reply of a node, None while it does not answer."""
    try:
        async with Redis(port=port) as client:
            return await client.execute_command(*command)
    except RedisConnectionError:
        return None


def slots_of(queue_name: str) -> list[list[int]]:
    """Slots of three masters: all but two are the first one's, and so is the queue's."""
    queue_slot = key_slot(f"rpiae:{{{queue_name}}}".encode())
    few = [slot for slot in range(3) if slot != queue_slot][:2]
    return [[slot for slot in range(NUM_SLOTS) if slot not in few], few[:1], few[1:]]


@pytest_asyncio.fixture(params=PROGRAMS)
async def nodes(
    request: pytest.FixtureRequest,
    require_tool: Callable[[str], str],
    queue_name: str,
    eventually: Callable[..., Awaitable[None]],
) -> AsyncIterator[list[RedisProcess]]:
    """Three masters, and a replica of the first."""
    program = find_program(request.param, require_tool)
    with TemporaryDirectory(prefix="rpiae-redis-") as parent:
        started = []
        for name in "abcd":
            folder = Path(parent, name)
            folder.mkdir()
            started.append(RedisProcess(program, folder, *OPTIONS, port=free_cluster_port()))
        ports = [node.port for node in started]

        async def all_up() -> bool:
            return all([await ask(port, "PING") for port in ports])

        async def all_know_each_other() -> bool:
            states = [str(await ask(port, "CLUSTER INFO")) for port in ports]
            return all("cluster_known_nodes': '4'" in state for state in states)

        async def all_serve() -> bool:
            states = [str(await ask(port, "CLUSTER INFO")) for port in ports]
            link = str(await ask(ports[3], "INFO", "replication"))
            return all("cluster_state': 'ok'" in s for s in states) and "'up'" in link

        try:
            for node in started:
                node.start()
            await eventually(all_up)
            for port, slots in zip(ports, slots_of(queue_name), strict=False):
                await ask(port, "CLUSTER ADDSLOTS", *slots)
            for number, port in enumerate(ports[1:], 1):
                await ask(port, "CLUSTER SET-CONFIG-EPOCH", number)
                await ask(port, "CLUSTER MEET", "127.0.0.1", ports[HOME])
            await eventually(all_know_each_other)
            home_id = await ask(ports[HOME], "CLUSTER MYID")
            await ask(ports[3], "CLUSTER REPLICATE", home_id)
            await eventually(all_serve)
            yield started
        finally:
            for node in started:
                node.kill()


@pytest.fixture
def cluster_url(nodes: list[RedisProcess]) -> str:
    """Names two nodes, neither of which has the queue."""
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes[1:3])


async def test_the_whole_queue_works_on_a_cluster(
    cluster_url: str, queue_name: str, make_job: MakeJob
) -> None:
    async with opened(cluster_url, queue_name) as queue:
        await queue.open()
        place = await queue.await_cancellation(None, 1)
        assert await queue.await_cancellation(place, 0.01) == place
        blocked = [asyncio.create_task(queue.take(f"w{i}", 1, 10_000)) for i in range(3)]
        jobs = [make_job(owner=str(i)) for i in range(3)]
        ids = tuple(job.id for job in jobs)
        group = Group(id="g", owner="", job_ids=ids, created_at=1, answer={})
        await queue.put(jobs, {job_id: b"source" for job_id in ids}, group)
        waits = [asyncio.create_task(queue.wait(job_id, 20)) for job_id in ids]
        for number, deliveries in enumerate(await asyncio.gather(*blocked)):
            worker, [delivery] = f"w{number}", deliveries
            await queue.publish_progress({delivery.job.id: (1, 4)})
            await queue.publish(delivery.job.id, "preview", {"step": 1}, b"preview")
            assert await queue.renew(worker, [delivery]) == set()
            assert await queue.finish(worker, delivery, [delivery.job.id.encode()], {})

        outcomes = await asyncio.gather(*waits)
        assert [outcome.outputs for outcome in outcomes] == [[job_id.encode()] for job_id in ids]
        events = [event async for event in queue.events(jobs[0].id)]
        assert [event.kind for event in events] == [
            "queued", "started", "progress", "preview", "succeeded",
        ]  # fmt: skip
        assert events[3].blob == b"preview"
        assert await queue.group("g") == group
        assert (await queue.depth())["interactive"].waiting == 0
        await queue.announce("w0", {"model": "stickers"}, 60)
        assert list(await queue.workers()) == ["w0"]
        assert await queue.dead_letters() == []
        assert await queue.ping()


async def test_every_accepted_job_ends_when_the_queue_s_node_is_killed(
    nodes: list[RedisProcess],
    cluster_url: str,
    queue_name: str,
    make_job: MakeJob,
    eventually: Callable[..., Awaitable[None]],
) -> None:
    async with opened(cluster_url, queue_name) as queue:
        await queue.open()
        load = Load(cluster_url, queue_name, make_job)
        running = asyncio.create_task(load.run())
        try:
            await asyncio.sleep(0.5)
            nodes[HOME].kill()

            await eventually(partial(is_served, queue, make_job))
            await asyncio.sleep(0.2)
        finally:
            load.stop()
            await running

    # Replication is asynchronous: what it had not carried over is reported as lost.
    assert set(load.ends) <= {"succeeded", "lost"}
    assert load.ends["succeeded"] > 0
