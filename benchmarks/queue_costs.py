"""What each command of the queue costs Redis: microseconds of its thread.

Counted are the seconds of processor time that the server spent while a command ran many times, so
reading and writing the sockets is in them, and waiting for others is not. Of commands that are
scripts, the time that the server reports for the script alone (INFO commandstats) stands beside.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.asyncio import Redis

from service.jobs.connection import connect
from service.jobs.group import Group
from service.jobs.job import Delivery, GenerateParams, Job
from service.jobs.queue import JobQueue
from service.tasks import end_tasks

PARAMS = GenerateParams(prompt="a red circle on blue", seed=1, steps=20, guidance_scale=3)
RESULT = bytes(20 * 1024)
INFO = {
    "seed": 1,
    "timings_s": {"queue": 0.001, "denoise": 0.5},
    "worker": "w",
    "num_deliveries": 1,
}
NUM_BLOCKED = 16  # that wait at the same time
MANY = 8  # jobs of a busy worker
NUM_WORKERS = 100
SETTLE_S = 0.001  # until those who were told wait again
TURNS = 3
BLOCK_MS = 10  # of workers that wait in vain
ANNOUNCEMENT = {
    "model": "stickers", "backend": "torch", "host": "worker-0123456789-abcde", "pid": 1,
    "active_rows": 16, "max_rows": 16, "step_seconds": 0.0123456789,
    "row_steps_left": 320, "urgent_rows": 16, "urgent_row_steps_left": 320,
    "row_steps_per_s": 1234.56789, "metrics_url": "http://127.0.0.1:12345/metrics",
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Microseconds of a call: of the server's thread in all, and inside a script; of the caller."""

    thread_us: float
    script_us: float
    caller_us: float

    def minus(self, other: "Cost", share: float = 1.0) -> "Cost":
        """What this has beyond the other, divided among so many."""
        return Cost(
            max(0.0, self.thread_us - other.thread_us) / share,
            max(0.0, self.script_us - other.script_us) / share,
            max(0.0, self.caller_us - other.caller_us) / share,
        )


NOTHING = Cost(0, 0, 0)


def make_job() -> Job:
    """A picture that nobody else asks for."""
    now = time.time()
    return Job(
        id=uuid.uuid4().hex,
        task="generate",
        model="none",
        params=PARAMS,
        created_at=now,
        deadline_at=now + 600,
        owner="benchmark",
        row_steps=40,
    )


async def put_one(queue: JobQueue) -> Job:
    """As a gateway puts the job of a request."""
    job = make_job()
    ids = (job.id,)
    group = Group(
        id=uuid.uuid4().hex, owner=job.owner, job_ids=ids, created_at=job.created_at, answer={}
    )
    await queue.put([job], {}, group)
    return job


class CostMeter:
    """Runs calls on one server, one after the other, and counts what they cost it."""

    def __init__(self, redis: Redis, rounds: int) -> None:
        self._redis = redis
        self.rounds = rounds

    async def cost(self, call: Callable[[], Awaitable[Any]]) -> Cost:
        """Of one call; its first run, which may load a script, does not count."""
        await call()
        before = await self._seconds()
        for _ in range(self.rounds):
            await call()
        after = await self._seconds()
        spent = [
            1e6 * (end - start) / self.rounds for start, end in zip(before, after, strict=True)
        ]
        return Cost(*spent)

    async def _seconds(self) -> tuple[float, float, float]:
        cpu: Any = await self._redis.info("cpu")
        stats: Any = await self._redis.info("commandstats")
        scripts = stats.get("cmdstat_evalsha", {"usec": 0})
        thread_s = cpu["used_cpu_user"] + cpu["used_cpu_sys"]
        return thread_s, 1e-6 * scripts["usec"], time.process_time()


async def measure_costs(url: str, rounds: int) -> dict[str, Cost]:
    """By the names of `benchmarks.simulation.costs.RedisCosts`."""
    async with AsyncExitStack() as stack:
        redis = connect(url, max_connections=NUM_BLOCKED + 8)
        stack.push_async_callback(redis.aclose)
        queue = await stack.enter_async_context(_own_queue(redis))
        meter = CostMeter(redis, rounds)
        costs = await _way_of_a_job(meter, queue)
        costs |= await _waiting_worker(meter, redis)
        costs |= await _waiting_gateways(meter, redis)
        costs |= await _busy_worker(meter, queue)
        costs |= await _workers(meter, queue)
        return costs


async def _way_of_a_job(meter: CostMeter, queue: JobQueue) -> dict[str, Cost]:
    """One job at a time: put, taken, finished, looked at."""
    jobs: list[Job] = []
    held: list[Delivery] = []

    async def put() -> None:
        jobs.append(await put_one(queue))

    async def take() -> None:
        held.extend(await queue.take("w", 1, 0))

    async def finish() -> None:
        await queue.finish("w", held.pop(), [RESULT], INFO)

    async def look() -> None:
        await queue.outcome(jobs.pop().id)

    calls = {"put": put, "take": take, "finish": finish, "look": look}
    return {name: await meter.cost(call) for name, call in calls.items()}


async def _waiting_worker(meter: CostMeter, redis: Redis) -> dict[str, Cost]:
    """A worker that finds nothing, waits in vain, or waits and is called for a job."""
    async with _own_queue(redis) as queue:
        take_empty = await meter.cost(lambda: queue.take("w", 2, 0))
        names = [f"idle-{number}" for number in range(NUM_BLOCKED)]

        async def in_vain() -> None:
            await asyncio.gather(*(queue.take(name, 2, BLOCK_MS) for name in names))

        wait = (await meter.cost(in_vain)).minus(NOTHING, NUM_BLOCKED).minus(take_empty)
        for name in names:
            await queue.withdraw(name)

        async def at_once() -> None:
            await put_one(queue)
            for delivery in await queue.take("w", 2, 0):
                await queue.finish("w", delivery, [], INFO)
            await asyncio.sleep(SETTLE_S)

        ended = asyncio.Event()

        async def worker() -> None:
            while True:
                for delivery in await queue.take("w", 2, 500):
                    await queue.finish("w", delivery, [], INFO)
                    ended.set()

        async def by_a_call() -> None:
            await put_one(queue)
            await ended.wait()
            ended.clear()
            await asyncio.sleep(SETTLE_S)

        calls = []
        for _ in range(TURNS):  # a small difference of large costs
            uncalled = await meter.cost(at_once)
            async with _running([worker()]):
                calls.append((await meter.cost(by_a_call)).minus(uncalled))
    call = sorted(calls, key=lambda cost: cost.thread_us)[TURNS // 2]
    return {"take_empty": take_empty, "wait": wait, "call": call}


async def _waiting_gateways(meter: CostMeter, redis: Redis) -> dict[str, Cost]:
    """Gateways that are told of the end of another's job."""
    cycles = []
    for number in (0, NUM_BLOCKED):
        async with _own_queue(redis) as queue:

            async def cycle(queue: JobQueue = queue) -> None:
                await put_one(queue)
                for delivery in await queue.take("w", 1, 0):
                    await queue.finish("w", delivery, [], INFO)
                await asyncio.sleep(SETTLE_S)

            async with _running([_gateway(redis, queue) for _ in range(number)]):
                cycles.append(await meter.cost(cycle))
    return {"wake": cycles[1].minus(cycles[0], NUM_BLOCKED)}


@asynccontextmanager
async def _own_queue(redis: Redis) -> AsyncIterator[JobQueue]:
    queue = JobQueue(redis, name=uuid.uuid4().hex, max_waiting=2**20)
    await queue.open()
    try:
        yield queue
    finally:
        await queue.close()


async def _gateway(redis: Redis, queue: JobQueue) -> None:
    """Listens to the ends of all jobs, as `service.jobs.watch` does."""
    done = f"{queue._root}:done"
    place: Any = "$"
    async with redis.client() as client:
        while True:
            reply: Any = await client.xread({done: place}, count=256, block=500)
            if reply:
                entries = next(iter(reply.values()))[0] if isinstance(reply, dict) else reply[0][1]
                place = entries[-1][0]


@asynccontextmanager
async def _running(readers: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(reader) for reader in readers]
    await asyncio.sleep(0.1)
    try:
        yield
    finally:
        await end_tasks(tasks)


async def _busy_worker(meter: CostMeter, queue: JobQueue) -> dict[str, Cost]:
    """What it sends for the jobs that it has, however many steps they make."""
    for _ in range(MANY):
        await put_one(queue)
    held: list[Delivery] = []
    while len(held) < MANY:
        held += await queue.take("w", MANY, 0)
    ids = [delivery.job.id for delivery in held]

    async def publish(count: int) -> None:
        await queue.publish_progress({job_id: (3, 20) for job_id in ids[:count]})

    async def renew(count: int) -> None:
        await queue.renew("w", held[:count])

    async def heed() -> None:
        place = await queue.await_cancellation("0-0", 1)
        await queue.cancelled(ids if place else ())

    costs = {}
    for name, each, call in (
        ("publish", "publish_event", publish),
        ("renew", "renew_job", renew),
    ):
        one = await meter.cost(partial(call, 1))
        many = await meter.cost(partial(call, MANY))
        costs[each] = many.minus(one, MANY - 1)
        costs[name] = one.minus(costs[each])
    await queue.cancel(ids[0])  # now the reading ends at once: a wait would cost the server's own
    costs["heed"] = await meter.cost(heed)
    return costs


async def _workers(meter: CostMeter, queue: JobQueue) -> dict[str, Cost]:
    """What workers say of themselves, and gateways that read it of all."""
    announce = await meter.cost(lambda: queue.announce("w-0", ANNOUNCEMENT, 60))
    one = await meter.cost(queue.workers)
    for number in range(1, NUM_WORKERS):
        await queue.announce(f"w-{number}", ANNOUNCEMENT, 60)
    many = await meter.cost(queue.workers)
    each = many.minus(one, NUM_WORKERS - 1)
    return {"announce": announce, "list": one.minus(each), "list_worker": each}
