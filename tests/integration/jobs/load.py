"""Jobs that are put, run and waited for while something happens to Redis."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from service.errors import JobFailed, NotFound, Overloaded, QueueUnavailable
from service.jobs.connection import connect
from service.jobs.job import Job
from service.jobs.queue import JobQueue

MakeJob = Callable[..., Job]

OUTCOME_DEADLINE_S = 25


@asynccontextmanager
async def opened(url: str, name: str) -> AsyncIterator[JobQueue]:
    """A queue with a client of its own, as a process has it."""
    client = connect(url)
    queue = JobQueue(client, name=name, lease_s=3)
    try:
        yield queue
    finally:
        await queue.close()
        await client.aclose()


async def is_served(queue: JobQueue, make_job: MakeJob) -> bool:
    """Whether a job that is put now gets its result."""
    job = make_job()
    with suppress(QueueUnavailable, Overloaded, JobFailed, NotFound):
        await queue.put([job])
        return (await queue.wait(job.id, OUTCOME_DEADLINE_S)).outputs != []
    return False


class Load:
    """Two gateways that put jobs and wait for them, and two workers, until told to stop."""

    def __init__(self, url: str, name: str, make_job: MakeJob) -> None:
        self._url = url
        self._name = name
        self._make_job = make_job
        self._stopping = asyncio.Event()
        self._waiting: list[asyncio.Task[str]] = []
        self.ends: Counter[str] = Counter()

    async def run(self) -> None:
        """Returns when every accepted job has ended."""
        async with (
            opened(self._url, self._name) as gateway,
            opened(self._url, self._name) as other,
        ):
            workers = [asyncio.create_task(self._work(f"w{i}")) for i in range(2)]
            await asyncio.gather(self._put(gateway), self._put(other))
            self.ends = Counter(await asyncio.gather(*self._waiting))
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def stop(self) -> None:
        """Put no more jobs."""
        self._stopping.set()

    async def _put(self, queue: JobQueue) -> None:
        while not self._stopping.is_set():
            job = self._make_job()
            try:
                await queue.put([job])
            except (QueueUnavailable, Overloaded):
                await asyncio.sleep(0.01)
                continue
            self._waiting.append(asyncio.create_task(self._wait(queue, job)))
            await asyncio.sleep(0.005)

    async def _wait(self, queue: JobQueue, job: Job) -> str:
        try:
            outcome = await queue.wait(job.id, OUTCOME_DEADLINE_S)
        except (JobFailed, NotFound):
            return "lost"
        assert outcome.outputs == [job.id.encode()]
        return outcome.status

    async def _work(self, name: str) -> None:
        async with opened(self._url, self._name) as queue:
            while True:
                try:
                    for delivery in await queue.take(name, 4, 200):
                        await queue.finish(name, delivery, [delivery.job.id.encode()], {})
                except QueueUnavailable:
                    continue
