"""The one thread that an engine runs on, driven from an asyncio loop."""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from service.engine.engine import Engine
from service.engine.work import Tick, Work


class ComputeThread:
    """Ticks the engine for as long as it has work, and sleeps while it has none.

    Args:
        engine: touched by this thread alone once it runs.
        on_tick: called in the loop with the outcome of each tick.
    """

    def __init__(self, engine: Engine, on_tick: Callable[[Tick], None]) -> None:
        self._engine = engine
        self._on_tick = on_tick
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False

    def start(self) -> asyncio.Future[None]:
        """Begin to work; called in the loop that `on_tick` is to run in.

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
                self._read_inbox(wait=not self._engine.has_work)
                if self._engine.has_work and not self._stopping:
                    loop.call_soon_threadsafe(self._on_tick, self._engine.tick())
        except BaseException as caught:  # a thread has no caller; it reaches who awaits `ended`
            error = caught
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, ended, error)

    def _read_inbox(self, *, wait: bool) -> None:
        try:
            while True:
                self._inbox.get(block=wait)()
                wait = False
        except queue.Empty:
            return


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
