"""The one thread that an engine runs on, driven from an asyncio loop."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from service.engine.engine import Engine
from service.engine.work import Tick, Work

# Short ticks without news are told of together: each call of the loop takes the interpreter from
# this thread for a while.
_TELL_EVERY_S = 0.01


class ComputeThread:
    """Ticks the engine for as long as it has work, and sleeps while it has none.

    Args:
        engine: touched by this thread alone once it runs.
        on_ticks: called in the loop with the outcomes of the ticks since its last call.
        is_news: whether the loop shall know of a tick at once, and not with those that follow.
    """

    def __init__(
        self,
        engine: Engine,
        on_ticks: Callable[[Sequence[Tick]], None],
        is_news: Callable[[Tick], bool],
    ) -> None:
        self._engine = engine
        self._on_ticks = on_ticks
        self._is_news = is_news
        self._untold: list[Tick] = []
        self._told_at = 0.0
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False

    def start(self) -> asyncio.Future[None]:
        """Begin to work; called in the loop that `on_ticks` is to run in.

        Returns:
            A future that is done after `stop`, or has an error if the engine itself broke.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        threading.Thread(target=self._run, args=(loop, ended), name="compute", daemon=True).start()
        return ended

    def submit(self, work: Work) -> None:
        """Hand a job to the engine before its next tick."""
        self._inbox.put(lambda: self._engine.add(work))

    def drop(self, job_id: str) -> None:
        """Take a job out of the engine before its next tick; its events may still arrive."""
        self._inbox.put(lambda: self._engine.drop(job_id))

    def stop(self) -> None:
        """End the thread after the tick it is in, whatever is left."""
        self._inbox.put(self._stop)

    def _stop(self) -> None:
        self._stopping = True

    def _run(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
        error: BaseException | None = None
        try:
            while not self._stopping:
                self._read_inbox(loop)
                if self._engine.has_work and not self._stopping:
                    self._note(loop, self._engine.tick())
        except BaseException as caught:  # a thread has no caller; it reaches who awaits `ended`
            error = caught
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, ended, error)

    def _read_inbox(self, loop: asyncio.AbstractEventLoop) -> None:
        """All that is there; waits for something while there is nothing to compute."""
        wait = not self._engine.has_work
        if wait:
            self._tell(loop)
        with suppress(queue.Empty):
            while True:
                self._inbox.get(block=wait)()
                if wait:
                    wait, self._told_at = False, time.perf_counter()

    def _note(self, loop: asyncio.AbstractEventLoop, tick: Tick) -> None:
        self._untold.append(tick)
        if time.perf_counter() - self._told_at > _TELL_EVERY_S or self._is_news(tick):
            self._tell(loop)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._untold:
            loop.call_soon_threadsafe(self._on_ticks, self._untold)
            self._untold = []
        self._told_at = time.perf_counter()


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
