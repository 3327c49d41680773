"""The jobs of one request: put and waited for together, cancelled when nobody waits any more."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import anyio
from anyio import to_thread

from service.api.disconnect import cancel_tasks
from service.api.outcomes import error_of
from service.api.request_context import RequestContext
from service.api.state import Gateway
from service.errors import (
    Conflict,
    DeadlineExceeded,
    ErrorBody,
    JobCancelled,
    JobFailed,
    NotFound,
    NoWorker,
    Overloaded,
    QueueUnavailable,
)
from service.jobs.group import Group
from service.jobs.job import Job, Outcome
from service.log import get_logger

_CANCEL_TIMEOUT_S = 5.0
_NO_WORKER_RETRY_S = 5.0
_MAX_AGE_S = 0.2  # of the list of workers


class JobGroup:
    """An async context manager: jobs without an outcome at its end are cancelled.

    Jobs that somebody may still ask for go on: those of another request, whose idempotency key this
    one repeats, and those of a client that went away but gave a key to come back with.

    Attributes:
        jobs, stored: the jobs and their record in the queue; after `put`, those of the first
            request where this one repeats it.
        asynchronous: the client does not wait.
        replayed: the jobs are those of an earlier request.
    """

    def __init__(
        self,
        gateway: Gateway,
        context: RequestContext,
        jobs: Sequence[Job],
        stored: Group,
        *,
        fingerprint: Callable[[], str],
        asynchronous: bool,
        has_deadline: bool,
    ) -> None:
        self.jobs = jobs
        self.stored = stored
        self.asynchronous = asynchronous
        self.replayed = False
        self._gateway = gateway
        self._context = context
        self._fingerprint = fingerprint
        self._has_deadline = has_deadline
        self._wanted_later = asynchronous or bool(stored.idempotency_key)
        self._unfinished: set[str] = set()
        self._lacks_worker = False
        first = jobs[0]
        assert first.deadline_at is not None
        self._give_up_at = first.deadline_at
        self._patience_s = first.deadline_at - first.created_at

    async def __aenter__(self) -> Self:
        self._gateway.waiting.add(_this_task())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            # Nobody comes back for what came to nothing; what is late its deadline ends.
            came_to_nothing = isinstance(exc, JobFailed | JobCancelled | NoWorker)
            wanted_later = self._wanted_later and not came_to_nothing
            if not (self.replayed or wanted_later):
                await self._cancel_rest()
        finally:
            self._gateway.waiting.discard(_this_task())

    def expected(self) -> AbstractAsyncContextManager[None]:
        """What to put the jobs in if the caller waits for them: it saves looking for them first."""
        ids = () if self.asynchronous else [job.id for job in self.jobs]
        return self._gateway.queue.expecting(ids)

    async def put(self, payload: bytes | None = None) -> None:
        """Put all jobs or none; they share the payload. A request that repeats another puts none.

        Raises:
            NoWorker: nobody would take them, and nobody is waited for.
            RateLimited, DeadlineExceeded: they are not let in, see `Admission`.
            Overloaded: the queue is full.
            Conflict: the idempotency key belongs to a request for something else.
        """
        with self._gateway.tracing.span("enqueue", group_id=self.stored.id):
            await self._put(payload)

    async def _put(self, payload: bytes | None) -> None:
        queue = self._gateway.queue
        if self.stored.idempotency_key:
            digest = await to_thread.run_sync(self._fingerprint)
            self.stored = replace(self.stored, fingerprint=digest)
            # Before anything is refused: an answer that is there needs no worker and no room.
            if await self._joins(await queue.put((), group=self.stored)):
                return
        await self._admit()
        jobs = self.jobs
        payloads = {} if payload is None else {job.id: payload for job in jobs}
        self._unfinished = {job.id for job in jobs}
        try:
            in_effect = await queue.put(jobs, payloads, self.stored)
        except (Conflict, Overloaded):
            self._unfinished = set()
            await self._gateway.admission.withdraw(self._context, jobs)
            raise
        if await self._joins(in_effect):
            await self._gateway.admission.withdraw(self._context, jobs)
        else:
            self._context.headers["x-rpiae-job"] = self.stored.id

    async def await_worker(self) -> None:
        """Wait until there is a worker, if there was none when the jobs were put.

        Raises:
            NoWorker: none has come in the time that the settings allow.
            DeadlineExceeded: the request's own time is over.
        """
        if not self._lacks_worker:
            return
        left_s = self._give_up_at - time.time()
        limit_s = self._gateway.settings.wait_for_worker_s
        if not await self._gateway.await_worker(min(limit_s, left_s)):
            raise self._no_worker() if limit_s < left_s else self._too_late()

    async def outcome(self, job: Job) -> Outcome:
        """Wait until a job has succeeded.

        Raises:
            JobFailed: it failed.
            JobCancelled: somebody cancelled it.
            DeadlineExceeded: its time is over.
        """
        try:
            outcome = await self._gateway.queue.wait(
                job.id, max(0.0, self._give_up_at - time.time())
            )
        except DeadlineExceeded:
            raise self._too_late() from None
        except NotFound:
            raise JobFailed(
                job.id, ErrorBody("the queue lost it: send the request again", code="job_lost")
            ) from None
        self._unfinished.discard(job.id)
        error = error_of(job.id, outcome.status, outcome.error)
        if error is not None:
            raise error
        self._context.add_stages(outcome.info.get("timings_s", {}))
        return outcome

    async def outcomes(self) -> list[Outcome]:
        """Wait for all jobs; the first failure ends the wait, and so does the lack of a worker."""
        if len(self.jobs) == 1 and not self._lacks_worker:
            return [await self.outcome(self.jobs[0])]
        waits = [asyncio.ensure_future(self.outcome(job)) for job in self.jobs]
        tasks: list[asyncio.Future[Any]] = [*waits]
        everything = asyncio.gather(*waits)
        try:
            if self._lacks_worker:
                tasks.append(asyncio.ensure_future(self.await_worker()))
                await asyncio.wait((everything, tasks[-1]), return_when=asyncio.FIRST_COMPLETED)
                if not everything.done():
                    tasks[-1].result()
            return await everything
        finally:
            await cancel_tasks(tasks)

    async def _joins(self, in_effect: Group | None) -> bool:
        """Go on with the jobs of the request that came first with this key, if there was one."""
        if in_effect is None or in_effect.id == self.stored.id:
            return False
        views = await self._gateway.queue.views(in_effect.job_ids)
        self._unfinished = set()
        self.jobs = [view.job for view in views if view is not None]
        self.stored, self.replayed = in_effect, True
        self._context.headers["x-rpiae-job"] = in_effect.id
        self._context.headers["idempotent-replayed"] = "true"
        if len(self.jobs) < len(views):
            raise NotFound(f"the result of job {in_effect.id} has just expired: send it again")
        return True

    async def _admit(self) -> None:
        # Whether a deadline can be met is judged by what is known now.
        max_age_s = 0 if self._has_deadline else _MAX_AGE_S
        workers = await self._gateway.serving_workers(max_age_s)
        self._lacks_worker = not workers
        if self._lacks_worker and not self._gateway.settings.wait_for_worker_s:
            raise self._no_worker()
        await self._gateway.admission.admit(
            self._context, self.jobs, workers, has_deadline=self._has_deadline
        )

    def _no_worker(self) -> NoWorker:
        return NoWorker(
            f"no worker serves {self._gateway.manifest.name} at the moment: try again shortly",
            retry_after_s=_NO_WORKER_RETRY_S,
        )

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the result took longer than {self._patience_s:.3g} s: allow more with "
            "deadline_ms, ask for fewer steps, or try again when the service is less busy"
        )

    async def _cancel_rest(self) -> None:
        """Cancel the jobs that have no outcome yet, even while this task is being cancelled."""
        unfinished, self._unfinished = self._unfinished, set()
        if not unfinished:
            return
        with anyio.move_on_after(_CANCEL_TIMEOUT_S, shield=True):
            try:
                for job_id in unfinished:
                    await self._gateway.queue.cancel(job_id)
            except QueueUnavailable as error:
                # The jobs end at their deadlines; the request's own error is what the caller sees.
                get_logger(__name__).warning("jobs not cancelled", error=error.message)


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
