"""How a worker gets its jobs: as many as can step, and interactive ones at any time."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from service.errors import QueueUnavailable
from service.jobs.job import Delivery
from service.jobs.queue import JobQueue
from service.log import get_logger
from service.running import Room
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
        room: what can be taken now.
        accept: called with each job.
        draining: set when no more are to be taken.
    """

    def __init__(
        self,
        queue: JobQueue,
        worker: str,
        room: Callable[[], Room],
        accept: Callable[[Delivery], None],
        draining: asyncio.Event,
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._room = room
        self._accept = accept
        self._draining = draining
        self._woken = (asyncio.Event(), asyncio.Event())

    def wake(self) -> None:
        """Rows became free, or a job left, or the worker drains."""
        if self._draining.is_set() or self._room().urgent_credit:
            for event in self._woken:
                event.set()

    async def run(self) -> None:
        """Take jobs; returns once the worker drains."""
        readers = [
            asyncio.create_task(self._read(woken, only_urgent=only_urgent))
            for woken, only_urgent in zip(self._woken, (False, True), strict=True)
        ]
        try:
            await asyncio.gather(*readers)
        finally:
            await end_tasks(readers)

    async def _read(self, woken: asyncio.Event, *, only_urgent: bool) -> None:
        while not self._draining.is_set():
            woken.clear()
            room = self._room()
            # With credit for any job the first reader takes all that come; the second without it.
            if only_urgent == bool(room.credit) or not room.urgent_credit:
                await self._withdraw(only_urgent)
                await woken.wait()
                continue
            try:
                deliveries = await self._queue.take(
                    self._worker,
                    room.credit,
                    _BLOCK_MS,
                    urgent_credit=room.urgent_credit,
                    places=room.places,
                )
                if self._draining.is_set():
                    await self._queue.give_back(self._worker, deliveries)
                    break
            except QueueUnavailable as error:
                log.warning("cannot take jobs", reason=str(error.__cause__))
                await asyncio.sleep(_RETRY_S)
                continue
            for delivery in deliveries:
                self._accept(delivery)
        await self._withdraw(only_urgent)

    async def _withdraw(self, only_urgent: bool) -> None:
        with suppress(QueueUnavailable):  # the others look by themselves, too
            await self._queue.withdraw(self._worker, only_urgent=only_urgent)
