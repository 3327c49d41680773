"""A sentinel makes a replica the master while jobs are put, run and waited for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_asyncio
import redis.exceptions
from redis.asyncio import Redis

from service.jobs.job import Job
from tests.integration.jobs.load import Load, is_served, opened
from tests.integration.jobs.servers import (
    PROGRAMS,
    RedisProcess,
    SentinelProcess,
    find_program,
    free_port,
)

MakeJob = Callable[..., Job]


@dataclass
class Deployment:
    """Two servers, one a replica of the other, and a sentinel that watches them."""

    nodes: dict[int, RedisProcess]
    sentinel_port: int
    url: str

    async def master_port(self) -> int:
        """Port of the server that the sentinel takes for the master."""
        async with Redis(port=self.sentinel_port) as sentinel:
            return int((await sentinel.sentinel_master("m"))["port"])

    async def fail_over(self) -> None:
        """Let the sentinel swap master and replica, both of which live on."""
        async with Redis(port=self.sentinel_port) as sentinel:
            await sentinel.execute_command("SENTINEL", "FAILOVER", "m")


@pytest_asyncio.fixture(params=PROGRAMS)
async def deployment(
    request: pytest.FixtureRequest,
    require_tool: Callable[[str], str],
    eventually: Callable[..., Awaitable[None]],
) -> AsyncIterator[Deployment]:
    program = find_program(request.param, require_tool)
    with TemporaryDirectory(prefix="rpiae-redis-") as parent:
        folders = [Path(parent, name) for name in "abs"]
        for folder in folders:
            folder.mkdir()
        master_port, replica_port, sentinel_port, dead_port = (free_port() for _ in range(4))
        at_once = ("--repl-diskless-sync-delay", "0")
        replicaof = ("--replicaof", "127.0.0.1", str(master_port))
        processes = [
            RedisProcess(program, folders[0], *at_once, port=master_port),
            RedisProcess(program, folders[1], *at_once, *replicaof, port=replica_port),
            SentinelProcess(program, folders[2], port=sentinel_port, master_port=master_port),
        ]

        async def linked() -> bool:
            info = await ask(replica_port, "INFO", "replication")
            return bool(info) and info["master_link_status"] == "up"

        async def watched() -> bool:
            state = await ask(sentinel_port, "SENTINEL MASTER", "m")
            return bool(state) and state["num-slaves"] == 1

        try:
            for process in processes[:2]:
                process.start()
            await eventually(linked)
            processes[2].start()
            await eventually(watched)
            yield Deployment(
                {process.port: process for process in processes[:2]},
                sentinel_port,
                f"redis+sentinel://127.0.0.1:{dead_port},127.0.0.1:{sentinel_port}/m",
            )
        finally:
            for process in reversed(processes):
                process.kill()


async def ask(port: int, *command: str) -> dict[str, object]:
    """Reply of a server, empty while it does not answer."""
    try:
        async with Redis(port=port) as client:
            return dict(await client.execute_command(*command))
    except redis.exceptions.ConnectionError:
        return {}


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "swapped"])
async def test_every_accepted_job_ends_when_another_server_becomes_the_master(
    deployment: Deployment,
    queue_name: str,
    make_job: MakeJob,
    eventually: Callable[..., Awaitable[None]],
    killed: bool,
) -> None:
    old_port = await deployment.master_port()
    async with opened(deployment.url, queue_name) as queue:
        await queue.open()
        load = Load(deployment.url, queue_name, make_job)
        running = asyncio.create_task(load.run())
        try:
            await asyncio.sleep(0.5)
            if killed:
                deployment.nodes[old_port].kill()
            else:
                await deployment.fail_over()

            async def replaced() -> bool:
                return await deployment.master_port() != old_port

            await eventually(replaced)
            await eventually(partial(is_served, queue, make_job))
            await asyncio.sleep(0.2)
        finally:
            load.stop()
            await running

    # Replication is asynchronous: what it had not carried over is reported as lost.
    assert set(load.ends) <= {"succeeded", "lost"}
    assert load.ends["succeeded"] > 0
