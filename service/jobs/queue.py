"""The job queue: Redis Streams with leases, so that a job outlives the worker that runs it.

A job runs at least once and shows exactly one result. An entry is pending from `take` to `finish`;
its lease is the idle time of the pending entry, which `renew` resets. What changes several keys is
one Lua script, and every script that ends something checks first who holds the lease.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from service.errors import ErrorBody, Overloaded
from service.jobs.connection import BLOCK_SLICE_MS, Cancellation, unavailable_as_service_error
from service.jobs.job import (
    PRIORITIES,
    Delivery,
    EventKind,
    Job,
    Priority,
    QueueDepth,
    Status,
    to_json,
)
from service.jobs.scripts import Scripts
from service.jobs.store import JobStore

MIN_REDIS = (6, 2)
_MAX_RETRY_AFTER_S = 120
_LATE = ErrorBody(
    "the job's deadline passed while it waited: allow more time, or send it when less is waiting",
    code="deadline_exceeded",
)


class JobQueue(JobStore):
    """Jobs in, outcomes out. Gateways put, wait and cancel; workers take, renew and finish.

    Args:
        redis: made by `connect`, or any client that gives bytes.
        name: gateways and workers of one name share a queue.
        lease_s: an entry whose holder has not renewed it for so long is given to another.
        result_ttl_s: how long the outcome, outputs and events of an ended job stay.
        max_waiting: jobs of one priority that may wait; `put` refuses more.
        max_deliveries: a job handed out more often is given up.
        waiting_ttl_s: how long a job and its payload stay when nobody takes it.
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
        batch_share: float = 0.25,
        on_dead_letter: Callable[[str], None] | None = None,
    ) -> None:
        if not 0 < batch_share <= 0.5:
            raise ValueError(f"batch_share must be above 0 and at most 0.5, got {batch_share}")
        if min(lease_s, result_ttl_s, waiting_ttl_s) <= 0 or min(max_waiting, max_deliveries) < 1:
            raise ValueError(
                "lease_s, result_ttl_s, waiting_ttl_s, max_waiting and max_deliveries must be "
                f"positive, got {lease_s}, {result_ttl_s}, {waiting_ttl_s}, {max_waiting}, "
                f"{max_deliveries}"
            )
        super().__init__(redis, name=name)
        self._scripts = Scripts(redis, self._root)
        self._lease_ms = _ms(lease_s)
        self._result_ttl_ms = _ms(result_ttl_s)
        self._waiting_ttl_ms = _ms(waiting_ttl_s)
        self._max_waiting = max_waiting
        self._max_deliveries = max_deliveries
        self._max_streak = round(1 / batch_share) - 1
        self._on_dead_letter = on_dead_letter

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

    async def put(self, jobs: Sequence[Job], payloads: Mapping[str, bytes] | None = None) -> None:
        """Put all jobs, or none; a job that was put before is left as it is.

        Args:
            jobs: in the order in which they shall run.
            payloads: bytes by job id, for the jobs that have any.

        Raises:
            Overloaded: too many wait; `retry_after_s` is estimated from the pace of the queue.
        """
        args: list[str | bytes | int] = [self._max_waiting, self._waiting_ttl_ms, len(jobs)]
        for job in jobs:
            fields = [text for pair in job.to_fields().items() for text in pair]
            payload = payloads.get(job.id, b"") if payloads else b""
            args += [job.id, job.priority, payload, len(fields), *fields]
        accepted, *full = await self._scripts.run("put", args)
        if not accepted:
            num_excess, job_ms = full
            wait_s = math.ceil(num_excess * job_ms / 1000)
            raise Overloaded(
                f"the queue is full ({self._max_waiting} jobs wait): try again later",
                retry_after_s=min(max(1, wait_s), _MAX_RETRY_AFTER_S),
            )

    async def take(self, worker: str, credit: int, block_ms: int) -> list[Delivery]:
        """Up to `credit` jobs, now held by the worker until its lease ends.

        First those whose lease ended or that were given back, then new ones: interactive before
        batch, with a share for batch. Jobs that were cancelled, are past their deadline, or were
        handed out too often are ended on the way.

        Args:
            worker: a name that no other process uses, nor this one after a restart.
            credit: free slots of the worker.
            block_ms: how long to wait when there is nothing; 0 does not wait.
        """
        if credit < 1:
            return []
        left_ms = block_ms
        cancellation = Cancellation()
        while True:
            deliveries, places = await self._take_now(worker, credit)
            if deliveries or left_ms <= 0:
                return deliveries
            cancellation.check()
            slice_ms = min(left_ms, BLOCK_SLICE_MS)
            if places:
                with unavailable_as_service_error():
                    await self._redis.xread(places, count=1, block=slice_ms)
            left_ms -= slice_ms

    async def renew(self, worker: str, deliveries: Iterable[Delivery]) -> set[str]:
        """Restart the leases. Returns the ids of jobs that are another worker's by now."""
        args = [worker, *_entries(deliveries)]
        if len(args) == 1:
            return set()
        return {job_id.decode() for job_id in await self._scripts.run("renew", args)}

    async def publish(
        self, job_id: str, kind: EventKind, data: dict[str, Any], blob: bytes | None = None
    ) -> None:
        """Add an event to a job that has not ended; else nothing happens.

        For progress and previews: where a job stands is published by the calls that change it.
        """
        await self._scripts.run(
            "publish",
            [job_id, self._waiting_ttl_ms, self._result_ttl_ms, kind, to_json(data), blob or b""],
        )

    async def finish(
        self, worker: str, delivery: Delivery, outputs: list[bytes], info: dict[str, Any]
    ) -> bool:
        """Store the result and end the job. False: the lease is another's, nothing was changed."""
        where = _entries([delivery])
        return await self._end(worker, where, Status.SUCCEEDED, to_json(info), outputs)

    async def fail(self, worker: str, delivery: Delivery, error: ErrorBody) -> bool:
        """End the job with an error, for good. False: the lease is another's."""
        where = _entries([delivery])
        return await self._end(worker, where, Status.FAILED, to_json(error.to_dict()))

    async def finish_cancelled(self, worker: str, delivery: Delivery) -> bool:
        """End a running job that was cancelled. False: the lease is another's."""
        return await self._end(worker, _entries([delivery]), Status.CANCELLED, "")

    async def give_back(self, worker: str, deliveries: Iterable[Delivery]) -> None:
        """Free jobs for other workers at once; this delivery does not count."""
        entries = _entries(deliveries)
        if entries:
            await self._scripts.run("give_back", [worker, self._waiting_ttl_ms, *entries])

    async def cancel(self, job_id: str) -> Status | None:
        """End a waiting job, or ask a running one to end. Returns its status; None: unknown."""
        status = await self._scripts.run("cancel", [job_id, self._result_ttl_ms])
        return Status(status.decode()) if status else None

    async def cancelled(self, job_ids: Iterable[str]) -> set[str]:
        """Those of the running jobs that somebody cancelled."""
        ids = list(job_ids)
        if not ids:
            return set()
        with unavailable_as_service_error():
            marks = await self._redis.smismember(f"{self._root}:cancel", ids)
        return {job_id for job_id, marked in zip(ids, marks, strict=True) if marked}

    async def depth(self) -> dict[Priority, QueueDepth]:
        """What waits, as Redis knows it at this moment."""
        depths = await self._scripts.run("depth")
        return {
            priority: QueueDepth(waiting=waiting, oldest_s=oldest_ms / 1000)
            for priority, (waiting, oldest_ms) in zip(PRIORITIES, depths, strict=True)
        }

    async def announce(self, worker: str, info: dict[str, Any], ttl_s: float) -> None:
        """Say that a worker lives, for `ttl_s`; 0 takes it off the list."""
        await self._scripts.run("announce", [worker, to_json(info), _ms(ttl_s)])

    async def workers(self) -> dict[str, dict[str, Any]]:
        """What the live workers announced, by name."""
        flat = iter(await self._scripts.run("workers"))
        return {name.decode(): json.loads(info) for name, info in zip(flat, flat, strict=True)}

    async def _take_now(self, worker: str, credit: int) -> tuple[list[Delivery], dict[Any, Any]]:
        """Jobs, and the places in the streams from where to wait when there are none."""
        dead = ErrorBody(
            f"the job was given to {self._max_deliveries} workers and none of them finished it",
            code="too_many_deliveries",
        )
        handed, dead_ids, last = await self._scripts.run(
            "take",
            [
                worker, credit, self._lease_ms, self._max_deliveries, self._waiting_ttl_ms,
                self._result_ttl_ms, self._max_streak, to_json(dead.to_dict()),
                to_json(_LATE.to_dict()),
            ],
        )  # fmt: skip
        if self._on_dead_letter:
            for job_id in dead_ids:
                self._on_dead_letter(job_id.decode())
        deliveries = [await self._to_delivery(worker, *raw) for raw in handed]
        names = [f"{self._root}:stream:{priority}" for priority in PRIORITIES]
        places = dict(zip([*names, f"{self._root}:wake"], last, strict=False))
        return [delivery for delivery in deliveries if delivery], places

    async def _to_delivery(
        self,
        worker: str,
        entry: bytes,
        num_deliveries: int,
        waited_ms: int,
        payload: bytes | None,
        flat: list[bytes],
    ) -> Delivery | None:
        """A delivery; None when the stored job is of another version, which ends it as failed."""
        texts = (value.decode() for value in flat)
        fields = dict(zip(texts, texts, strict=True))
        entry_id = entry.decode()
        try:
            job = Job.from_fields(fields)
        except ValueError as error:
            body = ErrorBody(f"this worker cannot read the job: {error}", code="unreadable_job")
            where = [fields.get("priority", PRIORITIES[0]), entry_id, fields["id"]]
            await self._end(worker, where, Status.FAILED, to_json(body.to_dict()))
            return None
        return Delivery(job, entry_id, payload, num_deliveries, waited_ms / 1000)

    async def _end(
        self,
        worker: str,
        where: Sequence[str],
        status: Status,
        detail: str,
        outputs: Sequence[bytes] = (),
    ) -> bool:
        args: list[str | bytes | int] = [
            worker,
            *where,
            self._result_ttl_ms,
            status,
            detail,
            *outputs,
        ]
        return bool(await self._scripts.run("finish", args))


def _entries(deliveries: Iterable[Delivery]) -> list[str]:
    """Priority, entry and id of each, as the scripts take them."""
    return [
        text
        for delivery in deliveries
        for text in (delivery.job.priority, delivery.entry_id, delivery.job.id)
    ]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
