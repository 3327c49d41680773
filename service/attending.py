"""While jobs run: cancellations are noticed, and progress is published."""

import asyncio
from collections.abc import Callable

from service.errors import QueueUnavailable
from service.jobs.queue import JobQueue
from service.running import RunningJob, RunningJobs

_RETRY_S = 0.2
_PUBLISH_EVERY_S = 0.04
_LOOK_EVERY_S = 1.0
_ON_ITS_WAY_S = 0.1  # a job at most, from the queue to this worker


class Attending:
    """What a worker does for the jobs that it holds, beside computing them; each in its own task.

    Args:
        queue: asked and told.
        jobs: those that are held.
        on_cancelled: called with each job that somebody cancelled.
    """

    def __init__(
        self, queue: JobQueue, jobs: RunningJobs, on_cancelled: Callable[[RunningJob], None]
    ) -> None:
        self._queue = queue
        self._jobs = jobs
        self._on_cancelled = on_cancelled
        self._moved = asyncio.Event()

    def moved(self) -> None:
        """Jobs have made a step."""
        self._moved.set()

    async def watch(self) -> None:
        """Find cancelled jobs as soon as the queue tells of one, so that a job that was cancelled
        while a step ran is not in the next one; soon after that again, because what was told of may
        have been on its way here; and now and then anyway.
        """
        place: str | None = None
        patience_s = _LOOK_EVERY_S
        while True:
            try:
                before, place = place, await self._queue.await_cancellation(place, patience_s)
                await self._look()
                patience_s = _LOOK_EVERY_S if place == before else _ON_ITS_WAY_S
            except QueueUnavailable:
                place = None
                await asyncio.sleep(_RETRY_S)

    async def publish(self) -> None:
        """Publish how far the jobs are, all in one call, and not each step if those are short."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            try:
                await self._queue.publish_progress(self._jobs.pop_progress())
                await asyncio.sleep(_PUBLISH_EVERY_S)
            except QueueUnavailable:
                await asyncio.sleep(_RETRY_S)

    async def _look(self) -> None:
        jobs = self._jobs.interruptible
        cancelled = await self._queue.cancelled(job.id for job in jobs)
        for job in jobs:
            if job.id in cancelled and not (job.ending or job.released):
                self._on_cancelled(job)
