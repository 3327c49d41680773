"""What is known about jobs: their records, events and outcomes; and waiting for the latter two."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.errors import (
    DeadlineExceeded,
    ErrorBody,
    InvalidRequest,
    JobFailed,
    NotFound,
    QueueUnavailable,
)
from service.jobs.connection import Cancellation, unavailable_as_service_error
from service.jobs.job import Event, Job, Outcome, Status
from service.jobs.watch import Watch

_EVENT_ID = re.compile(r"\d{1,15}(-\d{1,15})?")
_EVENTS_PER_READ = 64
# A waiter looks again after this time even if nothing woke it, e.g. after Redis lost its data.
_LOOK_AGAIN_S = 20.0
_PAUSE_WHILE_UNAVAILABLE_S = 0.5


class JobStore:
    """The reading side of a queue. Any number of callers wait over one connection."""

    def __init__(self, redis: Redis, *, name: str) -> None:
        if redis.connection_pool.connection_kwargs.get("decode_responses"):
            raise ValueError("the queue carries bytes: make the client with decode_responses=False")
        self._redis = redis
        self._root = f"rpiae:{{{name}}}"
        self._watch = Watch(redis, self._root)

    async def close(self) -> None:
        """Stop watching. The client stays open: it belongs to the caller."""
        await self._watch.close()

    async def ping(self) -> bool:
        """Whether Redis answers."""
        try:
            return bool(await self._redis.ping())
        except RedisError:
            return False

    async def job(self, job_id: str) -> tuple[Job, Status] | None:
        """A job and where it stands; None when it is unknown or its time is over."""
        with unavailable_as_service_error():
            stored: Any = await self._redis.hgetall(self._key("job", job_id))
        if not stored:
            return None
        fields = {name.decode(): value.decode() for name, value in stored.items()}
        return Job.from_fields(fields), Status(fields["status"])

    async def outcome(self, job_id: str) -> Outcome | None:
        """How a job ended; None when it has not, is unknown, or its result has expired."""
        _, outcome = await self._look(job_id)
        return outcome

    async def wait(self, job_id: str, timeout_s: float | None) -> Outcome:
        """How a job ended, as soon as it does. A Redis that restarts meanwhile is waited for.

        Raises:
            DeadlineExceeded: it has not ended after `timeout_s`; it goes on, unless cancelled.
            NotFound: no such job.
            JobFailed: the job was there and is gone without an outcome.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._wait(job_id)
        except TimeoutError:
            raise DeadlineExceeded(
                f"job {job_id} has not ended after {timeout_s:g} s: "
                "allow more time, or ask for it again later"
            ) from None

    async def events(self, job_id: str, after: str = "0") -> AsyncIterator[Event]:
        """Events of a job, past and coming, in order; the last one is the job's end.

        Args:
            after: id of the last event that the caller knows; "0" starts at the beginning.

        Raises:
            InvalidRequest: `after` is not an event's id.
            NotFound: no such job.
        """
        if not _EVENT_ID.fullmatch(after):
            raise InvalidRequest(
                f"{after[:40]!r} is not the id of an event: send one that this job's events carry",
                param="Last-Event-ID",
            )
        key = self._key("events", job_id)
        cancellation = Cancellation()
        async with self._watch.stream(key, after) as changed:
            while True:
                changed.clear()
                entries, status = await self._read_events(job_id, after)
                if status is None:
                    raise _not_found(job_id)
                for entry_id, fields in entries:
                    after = entry_id.decode()
                    event = await self._to_event(after, fields)
                    cancellation.check()
                    yield event
                    if event.final:
                        return
                    cancellation = Cancellation()  # the next event may be another task's
                if not entries:
                    if status.final:
                        return
                    cancellation.check()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), _LOOK_AGAIN_S)

    async def dead_letters(self, count: int = 100) -> list[dict[str, Any]]:
        """Jobs that were given up, newest first.

        Each has id, task, model, num_deliveries, worker (the last one), error, at (Unix seconds).
        """
        with unavailable_as_service_error():
            entries: Any = await self._redis.xrevrange(f"{self._root}:dead", count=count)
        letters: list[dict[str, Any]] = []
        for entry_id, stored in entries:
            letter: dict[str, Any] = {name.decode(): text.decode() for name, text in stored.items()}
            letter["num_deliveries"] = int(letter["num_deliveries"])
            letter["error"] = json.loads(letter["error"])
            letter["at"] = int(entry_id.split(b"-")[0]) / 1000
            letters.append(letter)
        return letters

    async def _wait(self, job_id: str) -> Outcome:
        known = False
        cancellation = Cancellation()
        while True:
            try:
                async with self._watch.job_end(job_id) as changed:
                    while True:
                        changed.clear()
                        status, outcome = await self._look(job_id)
                        if outcome is not None:
                            return outcome
                        if status is None:
                            raise _lost(job_id) if known else _not_found(job_id)
                        known = True
                        cancellation.check()
                        with suppress(TimeoutError):
                            await asyncio.wait_for(changed.wait(), _LOOK_AGAIN_S)
            except QueueUnavailable:
                await asyncio.sleep(_PAUSE_WHILE_UNAVAILABLE_S)

    async def _look(self, job_id: str) -> tuple[Status | None, Outcome | None]:
        with unavailable_as_service_error():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hmget(self._key("job", job_id), "status", "info", "error")
                pipe.lrange(self._key("outputs", job_id), 0, -1)
                (status, info, error), outputs = await pipe.execute()
        if status is None:
            return None, None
        found = Status(status.decode())
        if not found.final:
            return found, None
        return found, Outcome(
            status=found,
            outputs=outputs,
            info=json.loads(info) if info else {},
            error=ErrorBody.from_dict(json.loads(error)) if error else None,
        )

    async def _read_events(self, job_id: str, after: str) -> tuple[list[Any], Status | None]:
        """Entries and status at one moment, so that a final status means: no entry will follow."""
        with unavailable_as_service_error():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.xrange(self._key("events", job_id), min=f"({after}", count=_EVENTS_PER_READ)
                pipe.hget(self._key("job", job_id), "status")
                entries, status = await pipe.execute()
        return entries, Status(status.decode()) if status else None

    async def _to_event(self, event_id: str, fields: dict[bytes, bytes]) -> Event:
        blob: Any = None
        if b"blob" in fields:
            with unavailable_as_service_error():
                blob = await self._redis.get(fields[b"blob"])
        kind: Any = fields[b"kind"].decode()
        return Event(id=event_id, kind=kind, data=json.loads(fields[b"data"]), blob=blob)

    def _key(self, kind: str, job_id: str) -> str:
        return f"{self._root}:{kind}:{job_id}"


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"job {job_id} is unknown: it never was here, or its time is over")


def _lost(job_id: str) -> JobFailed:
    error = ErrorBody("the queue lost its data: send the request again", code="job_lost")
    return JobFailed(job_id, error)
