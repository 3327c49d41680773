"""What is in the queue, job by job, for the people who run it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from service.jobs.connection import unavailable_as_service_error
from service.jobs.job import PRIORITIES, Priority


@dataclass(frozen=True)
class ListedJob:
    """A job that waits or runs.

    `age_s`: since it was put. `worker` has it, and was last heard of `silent_s` ago; a job that
    waits has neither.
    """

    id: str
    priority: Priority
    task: str
    owner: str
    row_steps: int
    num_deliveries: int
    age_s: float
    worker: str | None = None
    silent_s: float | None = None


async def list_jobs(redis: Redis, name: str, limit: int) -> list[ListedJob]:
    """The oldest `limit` jobs of each priority that wait or run, in the order of arrival.

    Args:
        redis: the client of a queue that has been opened.
        name: of the queue.
        limit: for each priority.

    Raises:
        QueueUnavailable: Redis does not answer.
    """
    root = f"rpiae:{{{name}}}"
    listed = []
    with unavailable_as_service_error():
        for priority in PRIORITIES:
            stream = f"{root}:stream:{priority}"
            async with redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.xrange(stream, count=limit)
                pipe.xpending_range(stream, "workers", "-", "+", limit)
                (now_s, _), entries, pending = await pipe.execute()
            async with redis.pipeline(transaction=False) as pipe:
                for _, fields in entries:
                    job_key = f"{root}:job:{fields[b'id'].decode()}"
                    pipe.hmget(job_key, "task", "num_deliveries")
                records = await pipe.execute()
            leases = {lease["message_id"]: lease for lease in pending}
            for (entry, fields), record in zip(entries, records, strict=True):
                listed.append(_to_listed(priority, entry, fields, record, leases.get(entry), now_s))
    return listed


def _to_listed(
    priority: Priority,
    entry: bytes,
    fields: Mapping[bytes, bytes],
    record: list[bytes | None],
    lease: dict[str, Any] | None,
    now_s: int,
) -> ListedJob:
    task, num_deliveries = record
    return ListedJob(
        id=fields[b"id"].decode(),
        priority=priority,
        task=(task or b"expired").decode(),
        owner=fields[b"owner"].decode(),
        row_steps=int(fields[b"row_steps"]),
        num_deliveries=int(num_deliveries or 0),
        age_s=max(0.0, now_s - int(entry.split(b"-")[0]) / 1000),
        worker=lease["consumer"].decode() if lease else None,
        silent_s=lease["time_since_delivered"] / 1000 if lease else None,
    )
