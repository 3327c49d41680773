"""Waking many waiting tasks over one connection: a single blocking read on all they wait for.

A watch carries no data. It says "look again"; who is woken reads on from where he stands, so
nothing is lost between two readings and a slow reader holds nobody up.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.jobs.connection import (
    BLOCK_SLICE_MS,
    Cancellation,
    no_retries,
    reconnect_backoff,
    unavailable_as_service_error,
)

_MAX_ENTRIES = 256  # per stream and reading
_BELL_TTL_S = 60


class Watch:
    """Tells when jobs end and when event streams grow.

    The end of jobs comes from one stream of the queue, whatever the number of those who wait; event
    streams are added to the same blocking read, which a bell (a stream of our own) interrupts.
    """

    def __init__(self, redis: Redis, root: str) -> None:
        self._redis = redis
        self._done = f"{root}:done"
        self._bell = f"{root}:bell:{uuid.uuid4().hex}"
        self._cursors: dict[str, str] = {}  # event streams that somebody watches
        self._waiting: dict[str, set[asyncio.Event]] = {}  # by job id or by event stream
        self._positions: dict[str, str] | None = None  # of `done` and of the bell
        self._blocked = False
        # One connection of its own, which tells when it is made anew: what was lost with the server
        # before, or written to this one meanwhile, wakes nobody.
        self._reader = redis.client()
        self._task: asyncio.Task[None] | None = None
        self._ringing: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    @asynccontextmanager
    async def job_end(self, job_id: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set when the job ends, or when it is worth to look again."""
        await self._start()
        async with self._subscribed(job_id) as changed:
            yield changed

    @asynccontextmanager
    async def stream(self, key: str, after: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set when the stream has entries beyond those read before this call."""
        await self._start()
        async with self._subscribed(key) as changed:
            if key not in self._cursors:
                self._cursors[key] = after
                self._ring()
            try:
                yield changed
            finally:
                if self._waiting[key] == {changed}:
                    del self._cursors[key]

    async def close(self) -> None:
        for task in (self._task, self._ringing):
            while task and not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=0.1)  # again: a cancellation may get lost
        self._task = self._ringing = None
        connection: Any = self._reader.connection
        if connection is not None:
            connection.deregister_connect_callback(self._note_connection)
        await self._reader.aclose()

    @asynccontextmanager
    async def _subscribed(self, name: str) -> AsyncIterator[asyncio.Event]:
        changed = asyncio.Event()
        self._waiting.setdefault(name, set()).add(changed)
        try:
            yield changed
        finally:
            self._waiting[name].discard(changed)
            if not self._waiting[name]:
                del self._waiting[name]

    async def _start(self) -> None:
        """Fix the place in `done` before the caller looks at his job, so its end is not missed."""
        async with self._starting:
            if self._task is None or self._task.done():
                with unavailable_as_service_error():
                    self._positions = await self._find_positions()
                self._task = asyncio.create_task(self._read_for_ever(), name="queue watch")

    async def _find_positions(self) -> dict[str, str]:
        newest: Any = await self._redis.xrevrange(self._done, count=1)
        return {self._done: newest[0][0].decode() if newest else "0-0", self._bell: "0-0"}

    async def _read_for_ever(self) -> None:
        cancellation = Cancellation()
        backoff = reconnect_backoff()
        failures = 0
        while True:
            cancellation.check()
            try:
                if self._positions is None:
                    self._positions = await self._find_positions()
                    self._wake(list(self._waiting))  # what happened meanwhile went unseen
                if self._reader.connection is None:
                    await self._open_reader()
                self._blocked = True
                streams: dict[Any, Any] = {**self._positions, **self._cursors}
                with no_retries():  # a server that comes back may have lost its data
                    entries = await self._reader.xread(
                        streams, count=_MAX_ENTRIES, block=BLOCK_SLICE_MS
                    )
                failures = 0
            except RedisError:
                self._positions = None
                failures += 1
                await asyncio.sleep(backoff.compute(failures))
                continue
            finally:
                self._blocked = False
            self._note(entries, self._positions)

    async def _open_reader(self) -> None:
        await self._reader.initialize()
        connection: Any = self._reader.connection
        connection.register_connect_callback(self._note_connection)
        self._note_connection(connection)

    def _note_connection(self, _connection: Any) -> None:
        """All look again, on the server that is read from now."""
        self._wake(list(self._waiting))

    def _note(self, reply: Any, positions: dict[str, str]) -> None:
        """Move on in the streams that had entries and wake who waits for them."""
        for name, entries in _by_stream(reply).items():
            newest = entries[-1][0].decode()
            if name in positions:
                positions[name] = newest
            elif name in self._cursors:
                self._cursors[name] = newest
            if name == self._done:
                self._wake([fields[b"id"].decode() for _, fields in entries])
            else:
                self._wake([name])

    def _wake(self, names: list[str]) -> None:
        for name in names:
            for changed in self._waiting.get(name, ()):
                changed.set()

    def _ring(self) -> None:
        """Make the blocked reading start again, with the streams that were added since."""
        if self._blocked and (self._ringing is None or self._ringing.done()):
            self._blocked = False  # one ring serves all who come until the next reading
            self._ringing = asyncio.create_task(self._touch_bell())

    async def _touch_bell(self) -> None:
        # A ring that fails costs a second at most: the reading ends by itself.
        with suppress(RedisError):
            async with self._redis.pipeline() as pipe:
                pipe.xadd(self._bell, {"ring": 1}, maxlen=1, approximate=False)
                pipe.expire(self._bell, _BELL_TTL_S)
                await pipe.execute()


def _by_stream(reply: Any) -> dict[str, list[tuple[bytes, dict[bytes, bytes]]]]:
    """Entries by stream of an XREAD reply, which may be empty.

    A list of pairs in RESP2; in RESP3 a map, whose values redis-py wraps in one more list.
    """
    if isinstance(reply, Mapping):
        return {name.decode(): entries for name, [entries] in reply.items()}
    return {name.decode(): entries for name, entries in reply or ()}
