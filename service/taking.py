"""How a worker gets its jobs: as many as can step, and interactive ones at any time."""

import asyncio
from collections.abc import Callable

from service.errors import QueueUnavailable
from service.jobs.job import Delivery
from service.jobs.queue import JobQueue
from service.log import get_logger
from service.tasks import end_tasks

log = get_logger(__name__)

_BLOCK_MS = 500  # a drain waits this long for a reading that is under way
_RETRY_S = 0.2


class Taking:
    """Takes jobs until the worker drains.

    Two readers, because one that waits for interactive jobs while batch jobs fill the rows does not
    learn that a batch job has left.

    Args:
        queue, worker: where jobs are taken, and under whose name.
        credit: jobs to take now; with True those for which batch jobs give way.
        accept: called with each job.
        draining: set when no more are to be taken.
    """

    def __init__(
        self,
        queue: JobQueue,
        worker: str,
        credit: Callable[[bool], int],
        accept: Callable[[Delivery], None],
        draining: asyncio.Event,
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._credit = credit
        self._accept = accept
        self._draining = draining
        self._room = (asyncio.Event(), asyncio.Event())

    def wake(self) -> None:
        """Rows became free, or a job left, or the worker drains."""
        if self._draining.is_set() or self._credit(True):  # as many as of any priority, or more
            for event in self._room:
                event.set()

    async def run(self) -> None:
        """Take jobs; returns once the worker drains."""
        readers = [
            asyncio.create_task(self._read(room, only_urgent=only_urgent))
            for room, only_urgent in zip(self._room, (False, True), strict=True)
        ]
        try:
            await asyncio.gather(*readers)
        finally:
            await end_tasks(readers)

    async def _read(self, room: asyncio.Event, *, only_urgent: bool) -> None:
        while not self._draining.is_set():
            room.clear()
            credit, urgent = self._credit(False), self._credit(True)
            if only_urgent:
                urgent = 0 if credit else urgent  # the other reader takes any that come
                credit = 0
            elif not credit:
                urgent = 0
            if not urgent:
                await room.wait()
                continue
            try:
                deliveries = await self._queue.take(
                    self._worker, credit, _BLOCK_MS, urgent_credit=max(credit, urgent)
                )
                if self._draining.is_set():
                    await self._queue.give_back(self._worker, deliveries)
                    return
            except QueueUnavailable as error:
                log.warning("cannot take jobs", reason=str(error.__cause__))
                await asyncio.sleep(_RETRY_S)
                continue
            for delivery in deliveries:
                self._accept(delivery)
