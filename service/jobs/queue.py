"""The job queue: Redis Streams with leases, so that a job outlives the worker that runs it.

A job runs at least once and shows exactly one result. A job is an entry of its priority's stream.
While a worker has it the entry is pending, from `take` to `finish`; its lease is the idle time of
the pending entry, which `renew` resets. A job that waits is also in sorted sets, which tell whose
turn it is: the stream's own order would be that of arrival. So `take` makes the chosen entry
pending by XCLAIM with FORCE instead of reading new entries with XREADGROUP, and a job that is
cancelled while it waits leaves the stream at once. What changes several keys is one Lua script, and
every script that ends something checks first who holds the lease.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from redis.asyncio import Redis

from service.errors import Conflict, Overloaded
from service.jobs.connection import unavailable_as_service_error
from service.jobs.group import Group
from service.jobs.job import PRIORITIES, Job, Priority, QueueDepth, RedisMemory, Status, to_json
from service.jobs.leases import Leases, to_ms
from service.settings import Settings

MIN_REDIS = (6, 2)
_MAX_RETRY_AFTER_S = 120


class JobQueue(Leases):
    """Jobs in, outcomes out. Gateways put, wait and cancel; workers take, renew and finish.

    Args:
        redis: made by `connect`, or any client that gives bytes.
        name: gateways and workers of one name share a queue.
        lease_s: an entry whose holder has not renewed it for so long is given to another.
        result_ttl_s: how long the outcome, outputs and events of an ended job stay.
        max_waiting: jobs of one priority that may wait; `put` refuses more.
        max_deliveries: a job handed out more often is given up.
        waiting_ttl_s: how long a job and its payload stay when nobody takes it.
        dead_letter_ttl_s: how long a job that was given up can be put back.
        batch_share: part of the slots that batch jobs get while both priorities wait.
        on_dead_letter: called with the id of each job that this object gave up.

    Every method raises QueueUnavailable when Redis does not answer.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        name: str,
        lease_s: float = 15,
        result_ttl_s: float = 600,
        max_waiting: int = 256,
        max_deliveries: int = 3,
        waiting_ttl_s: float = 86400,
        dead_letter_ttl_s: float = 604800,
        batch_share: float = 0.25,
        on_dead_letter: Callable[[str], None] | None = None,
    ) -> None:
        if not 0 < batch_share <= 0.5:
            raise ValueError(f"batch_share must be above 0 and at most 0.5, got {batch_share}")
        durations = {
            "lease_s": lease_s,
            "result_ttl_s": result_ttl_s,
            "waiting_ttl_s": waiting_ttl_s,
            "dead_letter_ttl_s": dead_letter_ttl_s,
        }
        for option, value in durations.items():
            if value <= 0:
                raise ValueError(f"{option} must be positive, got {value}")
        if min(max_waiting, max_deliveries) < 1:
            raise ValueError(
                "max_waiting and max_deliveries must be positive, "
                f"got {max_waiting}, {max_deliveries}"
            )
        super().__init__(
            redis,
            name=name,
            max_deliveries=max_deliveries,
            batch_share=batch_share,
            on_dead_letter=on_dead_letter,
            **durations,
        )
        self._max_waiting = max_waiting

    @classmethod
    def from_settings(
        cls,
        redis: Redis,
        settings: Settings,
        *,
        on_dead_letter: Callable[[str], None] | None = None,
    ) -> Self:
        """The queue that gateways, workers and commands of these settings share."""
        return cls(
            redis,
            name=settings.queue_name,
            lease_s=settings.lease_s,
            result_ttl_s=settings.result_ttl_s,
            max_waiting=settings.max_waiting,
            max_deliveries=settings.max_deliveries,
            dead_letter_ttl_s=settings.dead_letter_ttl_s,
            on_dead_letter=on_dead_letter,
        )

    async def open(self) -> None:
        """Create the streams and groups. May be called at any time, any number of times.

        Raises:
            RuntimeError: the server is older than Redis 6.2.
        """
        with unavailable_as_service_error():
            info = await self._redis.info("server")
        version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
        if version < MIN_REDIS:
            raise RuntimeError(
                f"Redis {info['redis_version']} is too old for the job queue: use 6.2 or newer"
            )
        await self._scripts.run("open")

    async def put(
        self,
        jobs: Sequence[Job],
        payloads: Mapping[str, bytes] | None = None,
        group: Group | None = None,
    ) -> Group | None:
        """Put all jobs, or none; a job that was put before is left as it is.

        Args:
            jobs: jobs of one owner and deadline run in this order.
            payloads: bytes by job id, for the jobs that have any.
            group: kept as long as its jobs' records. If it has an idempotency key that its owner
                used before, nothing is put, unless a job of the earlier group was cancelled, its
                record is gone, its deadline has passed, or it failed for another reason than the
                request itself. Without jobs the call only looks for that earlier group.

        Returns:
            The group in effect: the one given, or the earlier one of the same key.

        Raises:
            Conflict: the key was used with another fingerprint.
            Overloaded: too many wait; `retry_after_s` is estimated from the pace of the queue.
        """
        answer, *details = await self._scripts.run("put", self._put_args(jobs, payloads, group))
        if answer == b"known":
            known = _to_group(details[0])
            if group is not None and known.fingerprint != group.fingerprint:
                raise Conflict(
                    "this idempotency key came with another request before: "
                    "send a new key, or the same request",
                    code="idempotency_key_reused",
                    param="Idempotency-Key",
                )
            return known
        if answer == b"full":
            num_excess, job_ms = details
            wait_s = math.ceil(num_excess * job_ms / 1000)
            raise Overloaded(
                f"the queue is full ({self._max_waiting} jobs wait): try again later",
                retry_after_s=min(max(1, wait_s), _MAX_RETRY_AFTER_S),
            )
        return group

    def _put_args(
        self, jobs: Sequence[Job], payloads: Mapping[str, bytes] | None, group: Group | None
    ) -> Iterable[str | bytes | int]:
        digest, group_values = ("", []) if group is None else (group.key_digest(), _flat(group))
        args: list[str | bytes | int] = [
            self._max_waiting, self._waiting_ttl_ms, self._result_ttl_ms, self._late_error,
            digest, len(group_values), *group_values, len(jobs),
        ]  # fmt: skip
        for job in jobs:
            values = _flat(job)
            due_ms = "" if job.deadline_at is None else to_ms(job.deadline_at)
            payload = payloads.get(job.id, b"") if payloads else b""
            args += [job.id, job.priority, job.owner, job.row_steps, due_ms, payload]
            args += [len(values), *values]
        return args

    async def group(self, group_id: str) -> Group | None:
        """Jobs that were put together; None when unknown, or the records of all have expired."""
        with unavailable_as_service_error():
            stored: Any = await self._redis.hgetall(self._key("group", group_id))
        if not stored:
            return None
        return Group.from_fields({name.decode(): text.decode() for name, text in stored.items()})

    async def cancel(self, job_id: str) -> Status | None:
        """End a waiting job, or ask a running one to end. Returns its status; None: unknown."""
        status = await self._scripts.run("cancel", [job_id, self._result_ttl_ms])
        return Status(status.decode()) if status else None

    async def requeue(self, job_id: str) -> bool:
        """Put a job that was given up back, with a new count of deliveries and a fresh deadline.

        Returns:
            False: it is not among the dead letters, or its time there is over.
        """
        letters = await self.dead_letters()
        entry = next((letter["entry"] for letter in letters if letter["id"] == job_id), None)
        known = await self.job(job_id)
        if entry is None or known is None:
            return False
        job, now = known[0], time.time()
        allowed_s = None if job.deadline_at is None else job.deadline_at - job.created_at
        deadline_at = None if allowed_s is None else now + allowed_s
        fresh = replace(job, created_at=now, deadline_at=deadline_at)
        due_ms = "" if deadline_at is None else to_ms(deadline_at)
        args = [entry, job_id, self._waiting_ttl_ms, self._result_ttl_ms, due_ms, *_flat(fresh)]
        return bool(await self._scripts.run("requeue", args))

    async def depth(self) -> dict[Priority, QueueDepth]:
        """What waits, as Redis knows it at this moment."""
        depths = await self._scripts.run("depth")
        return {
            priority: QueueDepth(waiting=waiting, oldest_s=oldest_ms / 1000, row_steps=row_steps)
            for priority, (waiting, oldest_ms, row_steps) in zip(PRIORITIES, depths, strict=True)
        }

    async def memory(self) -> RedisMemory:
        """What the server holds of everything, other users' data included."""
        with unavailable_as_service_error():
            info = await self._redis.info("memory")
        return RedisMemory(used_bytes=info["used_memory"], limit_bytes=info["maxmemory"])

    async def announce(self, worker: str, info: dict[str, Any], ttl_s: float) -> None:
        """Say that a worker lives, for `ttl_s`; 0 takes it off the list."""
        await self._scripts.run("announce", [worker, to_json(info), to_ms(ttl_s)])

    async def workers(self) -> dict[str, dict[str, Any]]:
        """What the live workers announced, by name."""
        flat = iter(await self._scripts.run("workers"))
        return {name.decode(): json.loads(info) for name, info in zip(flat, flat, strict=True)}


def _flat(stored: Job | Group) -> list[str]:
    return [text for pair in stored.to_fields().items() for text in pair]


def _to_group(flat: Sequence[bytes]) -> Group:
    texts = (value.decode() for value in flat)
    return Group.from_fields(dict(zip(texts, texts, strict=True)))
