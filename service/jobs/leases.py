"""The worker's side of the queue: taking jobs, keeping them, ending them, giving them back."""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from service.errors import ErrorBody
from service.jobs.connection import BLOCK_SLICE_MS, Cancellation, unavailable_as_service_error
from service.jobs.job import LATE, PRIORITIES, Delivery, EventKind, Job, Status, to_json
from service.jobs.scripts import Scripts
from service.jobs.store import JobStore

_MAX_UNANSWERED = 64


class Leases(JobStore):
    """What workers do with jobs. See JobQueue for the arguments."""

    def __init__(
        self,
        redis: Redis,
        *,
        name: str,
        lease_s: float,
        result_ttl_s: float,
        waiting_ttl_s: float,
        dead_letter_ttl_s: float,
        max_deliveries: int,
        batch_share: float,
        on_dead_letter: Callable[[str], None] | None,
    ) -> None:
        super().__init__(redis, name=name)
        self._scripts = Scripts(redis, self._root)
        self._lease_ms = to_ms(lease_s)
        self._result_ttl_ms = to_ms(result_ttl_s)
        self._waiting_ttl_ms = to_ms(waiting_ttl_s)
        self._dead_letter_ttl_ms = to_ms(dead_letter_ttl_s)
        self._max_deliveries = max_deliveries
        self._max_streak = round(1 / batch_share) - 1
        self._on_dead_letter = on_dead_letter
        dead = ErrorBody(
            f"the job was given to {max_deliveries} workers and none of them finished it",
            code="too_many_deliveries",
        )
        self._dead_error, self._late_error = to_json(dead.to_dict()), to_json(LATE.to_dict())
        self._unanswered: dict[str, list[str]] = {}  # names of takes, by worker
        self._called: set[str] = set()  # readers that are called when there is a job for them

    async def take(
        self,
        worker: str,
        credit: int,
        block_ms: int,
        *,
        urgent_credit: int | None = None,
        places: int | None = None,
    ) -> list[Delivery]:
        """Jobs that are now held by the worker until its lease ends.

        First those whose lease ended, then waiting ones: interactive before batch, with a share for
        batch; inside a priority the owner that was served least, of its jobs the one with the
        earliest deadline, then the oldest. Jobs that are past their deadline or were handed out too
        often are ended on the way. What a call handed out whose reply got lost comes with the next.

        A new job wakes one of the workers that wait, the one with most free places. Who has waited
        calls again, or tells with `withdraw` that it does not.

        Args:
            worker: a name that no other process uses, nor this one after a restart.
            credit: free slots of the worker for jobs of any priority.
            block_ms: how long to wait when there is nothing; 0 does not wait.
            urgent_credit: jobs to take in all, of which those beyond `credit` are interactive;
                `credit` unless given.
            places: free places in all, of which a credit may be a part; `urgent_credit` unless
                given.
        """
        urgent = credit if urgent_credit is None else urgent_credit
        if urgent < credit:
            raise ValueError(f"urgent_credit is {urgent}, below the credit of {credit}")
        if urgent < 1:
            return []
        reader = _reader(worker, only_urgent=not credit) if block_ms > 0 else ""
        waiting = (reader, urgent if places is None else places)
        is_called = reader in self._called
        self._called.discard(reader)
        left_ms = block_ms
        cancellation = Cancellation()
        while True:
            cancellation.check()
            if is_called:
                slice_ms = min(left_ms, BLOCK_SLICE_MS)
                # Redis 6.2 takes a millisecond for none, which would be for ever.
                timeout_s = max(slice_ms, 2) / 1000
                with unavailable_as_service_error():
                    await self._redis.blpop([self._key("call", reader)], timeout=timeout_s)
                left_ms -= slice_ms
            deliveries, is_called = await self._take_now(worker, credit, urgent, waiting)
            if deliveries or left_ms <= 0:
                if is_called:
                    self._called.add(reader)
                return deliveries

    async def withdraw(self, worker: str, *, only_urgent: bool = False) -> None:
        """Take no part in the waiting any more, after a `take` that waited.

        Args:
            only_urgent: it was one without credit for jobs of any priority.
        """
        reader = _reader(worker, only_urgent=only_urgent)
        if reader in self._called:
            self._called.discard(reader)
            await self._scripts.run("withdraw", [reader])

    async def renew(self, worker: str, deliveries: Iterable[Delivery]) -> set[str]:
        """Restart the leases. Returns the ids of jobs that are another worker's by now."""
        entries = _entries(deliveries)
        if not entries:
            return set()
        lost = await self._scripts.run("renew", [worker, self._lease_ms, *entries])
        return {job_id.decode() for job_id in lost}

    async def publish(
        self, job_id: str, kind: EventKind, data: dict[str, Any], blob: bytes | None = None
    ) -> None:
        """Add an event to a job that has not ended; else nothing happens.

        For progress and previews: where a job stands is published by the calls that change it.
        """
        await self._publish([job_id, kind, to_json(data), blob or b""])

    async def publish_progress(self, steps: Mapping[str, tuple[int, int]]) -> None:
        """Publish how far jobs are, (step, num_steps) by id, in one call."""
        events: list[str | bytes] = []
        for job_id, (step, num_steps) in steps.items():
            data = to_json({"step": step, "num_steps": num_steps})
            events += [job_id, "progress", data, b""]
        if events:
            await self._publish(events)

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

    async def cancelled(self, job_ids: Iterable[str]) -> set[str]:
        """Those of the running jobs that somebody cancelled."""
        ids = list(job_ids)
        if not ids:
            return set()
        with unavailable_as_service_error():
            marks = await self._redis.smismember(f"{self._root}:cancel", ids)
        return {job_id for job_id, marked in zip(ids, marks, strict=True) if marked}

    async def await_cancellation(self, after: str | None, timeout_s: float) -> str:
        """Wait until somebody cancels a running job of any worker, or the time is over.

        Args:
            after: what the last call returned. None returns the place to begin at, without a wait:
                what is cancelled from then on is not missed.
            timeout_s: a second at most.

        Returns:
            `after` if nobody cancelled any.
        """
        stream = f"{self._root}:cancelled"
        with unavailable_as_service_error():
            if after is not None:
                block_ms = min(max(1, to_ms(timeout_s)), BLOCK_SLICE_MS)  # 0 would not end
                read = await self._redis.xread({stream: after}, count=1, block=block_ms)
                if not read:
                    return after
            newest: Any = await self._redis.xrevrange(stream, count=1)
        return newest[0][0].decode() if newest else "0-0"

    async def _take_now(
        self, worker: str, credit: int, urgent: int, waiting: Sequence[str | int]
    ) -> tuple[list[Delivery], bool]:
        """Jobs, and whether the reader is called when there are more.

        `waiting`: the reader and its free places.
        """
        call, unanswered = secrets.token_hex(8), self._unanswered.setdefault(worker, [])
        args: list[str | int] = [
            worker, credit, urgent, self._lease_ms, self._max_deliveries, self._waiting_ttl_ms,
            self._result_ttl_ms, self._dead_letter_ttl_ms, self._max_streak,
            self._dead_error, self._late_error, *waiting, call, *unanswered,
        ]  # fmt: skip
        try:
            handed, dead_ids, is_called = await self._scripts.run("take", args)
        except BaseException:  # also when this task was cancelled: the call may still be on its way
            unanswered.append(call)
            del unanswered[:-_MAX_UNANSWERED]
            raise
        unanswered.clear()
        if self._on_dead_letter:
            for job_id in dead_ids:
                self._on_dead_letter(job_id.decode())
        deliveries = [await self._to_delivery(worker, *raw) for raw in handed]
        return [delivery for delivery in deliveries if delivery], bool(is_called)

    async def _to_delivery(
        self,
        worker: str,
        entry: bytes,
        num_deliveries: int,
        waited_ms: int,
        payload: bytes | None,
        flat: list[bytes],
        *_: bytes,
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

    async def _publish(self, events: Sequence[str | bytes]) -> None:
        """Events of four values each, as the script takes them."""
        await self._scripts.run("publish", [self._waiting_ttl_ms, self._result_ttl_ms, *events])

    async def _end(
        self,
        worker: str,
        where: Sequence[str],
        status: Status,
        detail: str,
        outputs: Sequence[bytes] = (),
    ) -> bool:
        args: list[str | bytes | int] = [
            worker, *where, self._result_ttl_ms, status, detail, *outputs,
        ]  # fmt: skip
        return bool(await self._scripts.run("finish", args))


def to_ms(seconds: float) -> int:
    """Whole milliseconds."""
    return round(seconds * 1000)


def _reader(worker: str, *, only_urgent: bool) -> str:
    """Who is called; a worker may have two. As in shared.lua."""
    return f"{worker}:urgent" if only_urgent else worker


def _entries(deliveries: Iterable[Delivery]) -> list[str]:
    """Priority, entry and id of each, as the scripts take them."""
    return [
        text
        for delivery in deliveries
        for text in (delivery.job.priority, delivery.entry_id, delivery.job.id)
    ]
