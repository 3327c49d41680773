"""Where a caller stands in the queue: what it has there, and what its next job would wait for."""

from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from service.jobs.connection import unavailable_as_service_error
from service.jobs.job import Job
from service.jobs.scripts import Scripts


@dataclass(frozen=True)
class Ahead:
    """What would be handed out before a new job, and how many jobs wait in all."""

    row_steps: int
    num_waiting: int


class Standing:
    """Questions of a gateway before it puts jobs.

    Args:
        redis: the queue's client.
        name: of the queue.
        ttl_s: how long a job may be known that nobody takes.

    Every method raises QueueUnavailable when Redis does not answer.
    """

    def __init__(self, redis: Redis, *, name: str, ttl_s: float = 86400) -> None:
        self._redis = redis
        self._root = f"rpiae:{{{name}}}"
        self._scripts = Scripts(redis, self._root)
        self._ttl_ms = round(1000 * ttl_s)

    async def reserve(self, caller: str, jobs: Sequence[Job], max_jobs: int) -> int | None:
        """Count jobs as the caller's until they end, or never come to the queue.

        Args:
            caller: key or address.
            jobs: that are about to be put.
            max_jobs: that it may have waiting or running.

        Returns:
            None, or how many it has when with these it would have too many.
        """
        ids = [job.id for job in jobs]
        num_held, noted = await self._scripts.run("reserve", [caller, max_jobs, self._ttl_ms, *ids])
        return None if noted else int(num_held)

    async def release(self, caller: str, jobs: Sequence[Job]) -> None:
        """Jobs that were reserved do not come to the queue: it refused them."""
        with unavailable_as_service_error():
            await self._redis.zrem(f"{self._root}:held:{caller}", *(job.id for job in jobs))

    async def ahead(self, job: Job) -> Ahead:
        """What stands before a job, which has a deadline, if it is put now."""
        assert job.deadline_at is not None
        row_steps, num_waiting = await self._scripts.run(
            "ahead", [job.priority, job.owner, round(1000 * job.deadline_at)]
        )
        return Ahead(row_steps=row_steps, num_waiting=num_waiting)
