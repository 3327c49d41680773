"""What is known about jobs: their records, events and outcomes; and waiting for the latter two."""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
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
from service.jobs.views import JobView
from service.jobs.watch import Watch

MAX_DEAD_LETTERS = 1000  # as in take.lua
_EVENT_ID = re.compile(r"\d{1,15}(-\d{1,15})?")
_EVENTS_PER_READ = 64
_EVENTS_PER_VIEW = 4  # enough to meet one with the step, if there is any
# A waiter looks again after this time even if nothing woke it, e.g. after Redis lost its data.
_LOOK_AGAIN_S = 20.0
_PAUSE_WHILE_UNAVAILABLE_S = 0.5
_EVENTS_PATIENCE_S = 30.0  # a caller that follows events may have no deadline


class JobStore:
    """The reading side of a queue. Any number of callers wait over one connection."""

    def __init__(self, redis: Redis, *, name: str) -> None:
        if redis.connection_pool.connection_kwargs.get("decode_responses"):
            raise ValueError("the queue carries bytes: make the client with decode_responses=False")
        self._redis = redis
        self._root = f"rpiae:{{{name}}}"
        self._watch = Watch(redis, self._root)
        self._expected: dict[str, asyncio.Event] = {}  # set when one of these jobs ends

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

    async def views(self, job_ids: Sequence[str]) -> list[JobView | None]:
        """Where jobs stand, in their order; None for what is unknown by now."""
        with unavailable_as_service_error():
            async with self._redis.pipeline(transaction=False) as pipe:
                for job_id in job_ids:
                    pipe.hgetall(self._key("job", job_id))
                    pipe.xrevrange(self._key("events", job_id), count=_EVENTS_PER_VIEW)
                replies = iter(await pipe.execute())
        return [
            JobView.from_stored(stored, events) if stored else None
            for stored, events in zip(replies, replies, strict=True)
        ]

    async def output(self, job_id: str, index: int = 0) -> bytes | None:
        """One of the files that a job made; None when it has none, or its time is over."""
        with unavailable_as_service_error():
            found: Any = await self._redis.lindex(self._key("outputs", job_id), index)
        return found if found is None else bytes(found)

    async def outcome(self, job_id: str) -> Outcome | None:
        """How a job ended; None when it has not, is unknown, or its result has expired."""
        _, outcome = await self._look(job_id)
        return outcome

    @asynccontextmanager
    async def expecting(self, job_ids: Sequence[str]) -> AsyncIterator[None]:
        """While it lasts the ends of these jobs, which are not put yet, are looked out for.

        So `wait` need not look first whether they are there and have ended already.
        """
        async with AsyncExitStack() as stack:
            for job_id in job_ids:
                changed = await stack.enter_async_context(self._watch.job_end(job_id))
                self._expected[job_id] = changed
                stack.callback(self._expected.pop, job_id)
            yield

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

    async def events(self, job_id: str, after: str = "0") -> AsyncGenerator[Event, None]:
        """Events of a job, past and coming, in order; the last one is the job's end.

        A Redis that goes away after the first event is waited for, half a minute at most.

        Args:
            after: id of the last event that the caller knows; "0" starts at the beginning.

        Raises:
            InvalidRequest: `after` is not an event's id.
            NotFound: no such job.
            JobFailed: the job was there and is gone without an end.
        """
        if not _EVENT_ID.fullmatch(after):
            raise InvalidRequest(
                f"{after[:40]!r} is not the id of an event: send one that this job's events carry",
                param="Last-Event-ID",
            )
        key = self._key("events", job_id)
        cancellation = Cancellation()
        seen_at: float | None = None
        async with self._watch.stream(key, after) as changed:
            while True:
                changed.clear()
                try:
                    entries, status = await self._read_events(job_id, after)
                except QueueUnavailable:
                    if seen_at is None or time.monotonic() - seen_at > _EVENTS_PATIENCE_S:
                        raise
                    cancellation.check()
                    await asyncio.sleep(_PAUSE_WHILE_UNAVAILABLE_S)
                    continue
                if status is None:
                    raise _not_found(job_id) if seen_at is None else _lost(job_id)
                seen_at = time.monotonic()
                for event in entries:
                    after = event.id
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

    async def dead_letters(self, count: int = MAX_DEAD_LETTERS) -> list[dict[str, Any]]:
        """Jobs that were given up, newest first.

        Each has id, task, model, num_deliveries, worker (the last one), error, at (Unix seconds)
        and entry (of the stream of dead letters).
        """
        with unavailable_as_service_error():
            entries: Any = await self._redis.xrevrange(f"{self._root}:dead", count=count)
            async with self._redis.pipeline(transaction=False) as pipe:
                for _, stored in entries:
                    pipe.exists(self._key("job", stored[b"id"].decode()))
                kept = await pipe.execute() if entries else []
        letters: list[dict[str, Any]] = []
        for (entry_id, stored), is_kept in zip(entries, kept, strict=True):
            if not is_kept:  # its time is over
                continue
            letter: dict[str, Any] = {name.decode(): text.decode() for name, text in stored.items()}
            letter["num_deliveries"] = int(letter["num_deliveries"])
            letter["error"] = json.loads(letter["error"])
            letter["entry"] = entry_id.decode()
            letter["at"] = int(entry_id.split(b"-")[0]) / 1000
            letters.append(letter)
        return letters

    async def _wait(self, job_id: str) -> Outcome:
        known = False
        cancellation = Cancellation()
        if (expected := self._expected.get(job_id)) is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(expected.wait(), _LOOK_AGAIN_S)
            cancellation.check()
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
            # No transaction: a full Redis refuses those. Outputs are there before the status is.
            async with self._redis.pipeline(transaction=False) as pipe:
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

    async def _read_events(self, job_id: str, after: str) -> tuple[list[Event], Status | None]:
        """Events, and the status before they were read: a final one means that no more follow."""
        with unavailable_as_service_error():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hget(self._key("job", job_id), "status")
                pipe.xrange(self._key("events", job_id), min=f"({after}", count=_EVENTS_PER_READ)
                status, entries = await pipe.execute()
        events = [await self._to_event(entry_id.decode(), fields) for entry_id, fields in entries]
        return events, Status(status.decode()) if status else None

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
