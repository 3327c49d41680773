"""The jobs of one request: put and waited for together, cancelled when nobody waits any more."""

import asyncio
import re
import secrets
import time
from collections.abc import Collection, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
from fastapi import Request
from starlette.requests import ClientDisconnect

from models.manifest import Manifest, Task
from service.api.request_context import RequestContext, context_of
from service.api.state import Gateway
from service.errors import (
    DeadlineExceeded,
    ErrorBody,
    InvalidRequest,
    JobFailed,
    NotFound,
    NoWorker,
    QueueUnavailable,
)
from service.jobs.job import Job, Outcome, Params, Priority, Status
from service.log import get_logger

ResultT = TypeVar("ResultT")

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_CANCEL_TIMEOUT_S = 5.0
_NO_WORKER_RETRY_S = 5.0


class JobGroup:
    """An async context manager: jobs without an outcome at its end are cancelled."""

    def __init__(self, gateway: Gateway, context: RequestContext, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self._gateway = gateway
        self._context = context
        self._unfinished = {job.id for job in jobs}

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
            await self._cancel_rest()
        finally:
            self._gateway.waiting.discard(_this_task())

    async def put(self, payload: bytes | None = None) -> None:
        """Put all jobs or none; they share the payload.

        Raises:
            NoWorker: nobody would take them.
            Overloaded: the queue is full.
        """
        if not await self._gateway.serving_workers():
            raise NoWorker(
                f"no worker serves {self._gateway.manifest.name} at the moment: try again shortly",
                retry_after_s=_NO_WORKER_RETRY_S,
            )
        payloads = {} if payload is None else {job.id: payload for job in self.jobs}
        await self._gateway.queue.put(self.jobs, payloads)

    async def outcome(self, job: Job) -> Outcome:
        """Wait until a job has succeeded.

        Raises:
            JobFailed: it failed or was cancelled by somebody else.
            DeadlineExceeded: its time is over.
        """
        assert job.deadline_at is not None
        try:
            outcome = await self._gateway.queue.wait(
                job.id, max(0.0, job.deadline_at - time.time())
            )
        except DeadlineExceeded:
            limit_s = job.deadline_at - job.created_at
            raise DeadlineExceeded(
                f"the result took longer than {limit_s:.3g} s: allow more with deadline_ms, "
                "ask for fewer steps, or try again when the service is less busy"
            ) from None
        except NotFound:
            raise JobFailed(
                job.id, ErrorBody("the queue lost it: send the request again", code="job_lost")
            ) from None
        self._unfinished.discard(job.id)
        if outcome.status is Status.SUCCEEDED:
            self._context.add_stages(outcome.info.get("timings_s", {}))
            return outcome
        if outcome.error is not None and outcome.error.code == DeadlineExceeded.default_code:
            raise DeadlineExceeded(outcome.error.message)
        raise JobFailed(
            job.id, outcome.error or ErrorBody("it was cancelled", code="job_cancelled")
        )

    async def outcomes(self) -> list[Outcome]:
        """Wait for all jobs; the first failure ends the wait."""
        waits = [asyncio.ensure_future(self.outcome(job)) for job in self.jobs]
        try:
            return await asyncio.gather(*waits)
        finally:
            await cancel_tasks(waits)

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


def make_jobs(
    request: Request,
    gateway: Gateway,
    owner: str,
    *,
    task: Task,
    params: Sequence[Params],
    priority: Priority = "interactive",
    deadline_ms: int | None = None,
) -> JobGroup:
    """One job for each element of `params`, with the request's identity and deadline.

    Raises:
        InvalidRequest: the model has no such task, or the deadline is beyond the service's limit.
    """
    manifest = gateway.manifest
    require_task(manifest, task)
    limit_s = gateway.settings.request_timeout_s
    timeout_s = limit_s if deadline_ms is None else deadline_ms / 1000
    if timeout_s > limit_s:
        raise InvalidRequest(
            f"deadline_ms is {deadline_ms}: the service allows at most {round(1000 * limit_s)}",
            status=422,
            param="deadline_ms",
            code="invalid_value",
        )
    context = context_of(request)
    traceparent = request.headers.get("traceparent", "")
    now = time.time()
    jobs = [
        Job(
            id=secrets.token_hex(16),
            task=task,
            model=manifest.name,
            params=each,
            priority=priority,
            created_at=now,
            deadline_at=now + timeout_s,
            owner=owner,
            request_id=context.id,
            traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else "",
        )
        for each in params
    ]
    return JobGroup(gateway, context, jobs)


def require_task(manifest: Manifest, task: Task) -> None:
    """Refuse a task that the model was not made for.

    Raises:
        InvalidRequest: 422 `unsupported_task`, naming the tasks that it has.
    """
    if task not in manifest.tasks:
        raise InvalidRequest(
            f"{manifest.name} has no task {task}, it has {', '.join(manifest.tasks)}",
            status=422,
            param="model",
            code="unsupported_task",
        )


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The work's result; the work is cancelled as soon as the client is gone.

    Only for use after the body has been read: what arrives next can then only be the disconnect.

    Raises:
        ClientDisconnect: the client closed the connection first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        await cancel_tasks((working, watching))


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def cancel_tasks(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel and wait, so that nothing of the request outlives it."""
    for task in tasks:
        task.cancel()
    with anyio.CancelScope(shield=True):
        await asyncio.gather(*tasks, return_exceptions=True)
