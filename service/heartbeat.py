"""A worker's signs of life: leases renewed, and what it is and does announced."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from service.errors import QueueUnavailable
from service.jobs.queue import JobQueue
from service.running import RunningJob, RunningJobs

_LEASE_SHARE = 1 / 3  # of a lease between two renewals
_ANNOUNCE_S = 1.0  # at most between two announcements, from which gateways estimate waiting times
_RETRY_S = 0.2


class Heartbeat:
    """Renewals and announcements in tasks of their own: nothing else in the worker delays them.

    Attributes:
        announced: set once gateways know of this worker.

    Args:
        queue, worker: whose leases, under which name.
        jobs: those that are held.
        lease_s: of the queue.
        on_lost: called with each job that another worker has by now.
        info: the announcement.
        is_leaving: whether gateways shall count on this worker no more.
    """

    def __init__(
        self,
        queue: JobQueue,
        worker: str,
        jobs: RunningJobs,
        *,
        lease_s: float,
        on_lost: Callable[[RunningJob], None],
        info: Callable[[], dict[str, Any]],
        is_leaving: Callable[[], bool],
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._jobs = jobs
        self._lease_s = lease_s
        self._on_lost = on_lost
        self._info = info
        self._is_leaving = is_leaving
        self.announced = asyncio.Event()

    async def keep_leases(self) -> None:
        """Renew the leases, three times in each."""
        await _repeat(self._renew, self._lease_s * _LEASE_SHARE)

    async def keep_announced(self) -> None:
        """Say that this worker lives."""
        await _repeat(self._announce, min(_ANNOUNCE_S, self._lease_s * _LEASE_SHARE))

    async def _renew(self) -> None:
        jobs = list(self._jobs)
        lost = await self._queue.renew(self._worker, [job.delivery for job in jobs])
        for job in jobs:
            # A job that is ending learns of its lease when its outcome is sent.
            if job.id in lost and not job.ending:
                self._on_lost(job)

    async def _announce(self) -> None:
        ttl_s = 0 if self._is_leaving() else self._lease_s
        await self._queue.announce(self._worker, self._info(), ttl_s)
        self.announced.set()


async def _repeat(call: Callable[[], Awaitable[None]], period_s: float) -> None:
    """Call at a steady rhythm, however long a call takes; sooner again after one that failed."""
    while True:
        started = time.monotonic()
        pause_s = period_s
        try:
            await call()
        except QueueUnavailable:
            pause_s = min(period_s, _RETRY_S)
        await asyncio.sleep(max(0.0, started + pause_s - time.monotonic()))
