"""How a worker's jobs end: result or error made ready and sent until the queue has it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from torch import Tensor

from service import metrics
from service.engine.work import Previewed
from service.errors import (
    BackendError,
    DeadlineExceeded,
    ErrorBody,
    QueueUnavailable,
    ServiceError,
)
from service.jobs.queue import JobQueue
from service.log import get_logger
from service.outputs import describe, encode_outputs
from service.running import RunningJob, RunningJobs
from service.tasks import end_tasks

log = get_logger(__name__)

RETRY_S = 0.2
_QUICK_BYTES = 2**16  # of pixels; as a PNG file they rarely take a millisecond


class Endings:
    """Ends jobs in the background; a job stays with the worker until the queue has its outcome.

    Args:
        queue, worker: where outcomes go, and under whose name.
        jobs: an ended job is removed from them.
        on_end: called after each job that left.
    """

    def __init__(
        self, queue: JobQueue, worker: str, jobs: RunningJobs, on_end: Callable[[], None]
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._jobs = jobs
        self._on_end = on_end
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def succeed(
        self, job: RunningJob, tensors: dict[str, Tensor], timings_s: dict[str, float]
    ) -> None:
        """Write the outputs and finish the job with them."""
        self._begin(job, self._succeed(job, tensors, timings_s))

    def preview(self, job: RunningJob, event: Previewed) -> None:
        """Write a preview and publish it, after those before it."""
        before = job.previews
        job.previews = asyncio.create_task(self._preview(job, event, before))
        self._keep(job.previews)

    def fail(self, job: RunningJob, error: Exception) -> None:
        """Fail the job for good."""
        job.hopeless = isinstance(error, DeadlineExceeded)
        self._begin(job, self._fail(job, error))

    def cancel(self, job: RunningJob) -> None:
        """Confirm that a cancelled job has stopped."""
        self._begin(
            job,
            self._send(job, lambda: self._queue.finish_cancelled(self._worker, job.delivery)),
        )
        job.trace.outcome = "cancelled"

    async def abandon(self) -> None:
        """Stop what is still on its way; the queue gives those jobs to another worker."""
        await end_tasks(self._tasks)

    def _begin(self, job: RunningJob, sending: Coroutine[Any, Any, None]) -> None:
        job.ending = True
        job.held_rows = 0
        self.track(sending)

    def track(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something for a job in the background, until `abandon`."""
        self._keep(asyncio.create_task(work))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._on_end()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an outcome could not be sent", reason=str(error), exc_info=error)

    async def _preview(
        self, job: RunningJob, event: Previewed, before: asyncio.Task[None] | None
    ) -> None:
        """A preview that cannot be sent is left out: it is no part of the result."""
        tensors = {"images": event.images}
        started = time.perf_counter()
        try:
            (blob,) = await _encode(job, tensors)
            if before is not None:
                await asyncio.wait([before])
            data = {"index": event.index, "step": event.step, "num_steps": event.num_steps}
            await self._queue.publish(event.job_id, "preview", data, blob)
            metrics.PREVIEWS.inc()
            job.trace.add_beside("publish preview", started)
        except QueueUnavailable as error:
            log.warning("preview not sent", reason=str(error.__cause__), **job.delivery.job.ids)
        except Exception as error:  # the per-job boundary
            log.error("preview failed", reason=str(error), exc_info=error, **job.delivery.job.ids)

    async def _succeed(
        self, job: RunningJob, tensors: dict[str, Tensor], timings_s: dict[str, float]
    ) -> None:
        started = time.perf_counter()
        try:
            outputs = await _encode(job, tensors)
        except Exception as error:  # the per-job boundary
            await self._fail(job, error)
            return
        timings_s = timings_s | {"compress": time.perf_counter() - started}
        job.trace.add("compress", started)
        job.trace.outcome = "succeeded"
        if job.previews is not None:  # nothing can be published once the job has ended
            await asyncio.wait([job.previews])
        for stage, seconds in timings_s.items():
            metrics.STAGE_SECONDS.labels(stage).observe(seconds)
        stages_s = {"queue": job.delivery.waited_s, **timings_s}
        info = {
            **describe(job.delivery.job),
            "timings_s": stages_s,
            "worker": self._worker,
            "num_deliveries": job.delivery.num_deliveries,
        }
        await self._send(job, lambda: self._queue.finish(self._worker, job.delivery, outputs, info))
        if not job.released:
            metrics.IMAGES.labels(job.delivery.job.task).inc(_num_images(tensors))
            rounded_s = {stage: round(seconds, 4) for stage, seconds in stages_s.items()}
            log.info("job finished", stages_s=rounded_s, **job.delivery.job.ids)

    async def _fail(self, job: RunningJob, error: Exception) -> None:
        log.error("job failed", reason=str(error), exc_info=error, **job.delivery.job.ids)
        job.trace.fail(error)
        body = _error_body(error)
        await self._send(job, lambda: self._queue.fail(self._worker, job.delivery, body))

    async def _send(self, job: RunningJob, call: Callable[[], Awaitable[bool]]) -> None:
        """Tell the queue how a job ended, as soon as it answers, unless the job is another's."""
        while not job.released:
            try:
                kept = await call()
            except QueueUnavailable:
                await asyncio.sleep(RETRY_S)
                continue
            if kept:
                job.trace.add("publish")
                self._jobs.remove(job)
                _count_deadline(job)
            else:
                self._jobs.lose(job)
            return


async def _encode(job: RunningJob, tensors: dict[str, Tensor]) -> list[bytes]:
    """The job's files, written on another thread unless that takes longer than the writing."""
    assert job.work is not None
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    slow_format = getattr(job.delivery.job.params, "output_format", None) == "webp"
    if num_bytes <= _QUICK_BYTES and not slow_format:
        return encode_outputs(job.delivery.job, tensors, job.work)
    return await asyncio.to_thread(encode_outputs, job.delivery.job, tensors, job.work)


def _num_images(tensors: dict[str, Tensor]) -> int:
    """Pictures made, or pictures turned into latents."""
    return len(next(iter(tensors.values())))


def _count_deadline(job: RunningJob) -> None:
    if job.delivery.job.deadline_at is not None:
        metrics.DEADLINES.labels("false" if job.expired else "true").inc()


def _error_body(error: Exception) -> ErrorBody:
    """What the caller reads: our own words, never a foreign traceback."""
    if isinstance(error, ServiceError):
        return error.body
    if isinstance(error, BackendError | ValueError):
        return ErrorBody(str(error).partition("\n")[0], code="job_failed")
    return ErrorBody("the worker failed to compute this job", code="job_failed")
