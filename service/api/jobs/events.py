"""A request's events as server-sent events, from any place on, past and coming."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from typing import Any

import anyio
from starlette.responses import StreamingResponse

from service.api.disconnect import cancel_tasks
from service.api.jobs.cursors import Cursors
from service.api.jobs.state import read_views
from service.api.outcomes import error_of
from service.api.state import Gateway
from service.errors import ErrorBody, ServiceError
from service.jobs.group import Group
from service.jobs.job import Event, Status

_KEEP_ALIVE_S = 15.0  # below the idle limits of common proxies
_RECONNECT_MS = 1000
_TOLD_AT_THE_END = ("seed", "timings_s")  # of what the worker notes, which names machines too


class JobEventStream(StreamingResponse):
    """The events after `cursors`, until the request has ended. A client that leaves ends nothing.

    When the queue cannot be read, or the gateway shuts down, the stream breaks off and the client
    comes back with the id of the last event, to this gateway or another.
    """

    def __init__(self, gateway: Gateway, group: Group, cursors: Cursors) -> None:
        self._gateway = gateway
        self._group = group
        self._cursors = cursors
        super().__init__(
            self._events(),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _events(self) -> AsyncIterator[bytes]:
        yield f"retry: {_RECONNECT_MS}\n\n".encode()
        sources = {
            index: self._gateway.queue.events(self._group.job_ids[index], after=place)
            for index, place in self._cursors.open_places.items()
        }
        exhausted: set[int] = set()
        reads = {asyncio.create_task(_read(source)): i for i, source in sources.items()}
        draining = asyncio.create_task(self._gateway.draining.wait())
        try:
            while reads and not self._cursors.at_end:
                done, _ = await asyncio.wait(
                    (*reads, draining), timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED
                )
                if draining in done:
                    return
                if not done:
                    yield b": still working\n\n" + await self._missed_ends(exhausted)
                for read in [read for read in reads if read in done]:
                    index, event = reads.pop(read), read.result()
                    if event is None:
                        exhausted.add(index)
                        yield await self._missed_ends(exhausted)
                    elif not self._cursors.at_end:
                        reads[asyncio.create_task(_read(sources[index]))] = index
                        yield await asyncio.to_thread(self._pass, index, event)
        except ServiceError:
            return
        finally:
            await cancel_tasks((*reads, draining))
            with anyio.CancelScope(shield=True):
                for source in sources.values():
                    await source.aclose()

    def _pass(self, index: int, event: Event) -> bytes:
        """An event as text, the reader now being past it."""
        self._cursors.advance(index, event)
        data = event.data
        if event.kind == "preview":
            data = {
                "partial_image_index": data["index"],
                "step": data["step"],
                "num_steps": data["num_steps"],
                "b64_json": b64encode(event.blob).decode() if event.blob else None,
            }
        elif event.kind == "failed":
            data = self._failure(index, ErrorBody.from_dict(data["error"]))
        elif event.kind == "succeeded":
            data = {name: data[name] for name in _TOLD_AT_THE_END if name in data}
        return self._written(event.kind, index, data, ends=event.final)

    async def _missed_ends(self, exhausted: Collection[int]) -> bytes:
        """Ends of jobs that no event will tell.

        Of those that have no more events, as the last was trimmed away; and of those whose deadline
        passed while they waited and nobody was there to end them.
        """
        texts = []
        views = await read_views(self._gateway, self._group)
        for index in self._cursors.open_places:
            view = views[index]
            unseen = index in exhausted or view.expires_at is None
            if view.status.final and unseen and not self._cursors.at_end:
                self._cursors.end(index, view.status)
                data = {} if view.error is None else self._failure(index, view.error)
                texts.append(self._written(view.status, index, data, ends=True))
        return b"".join(texts)

    def _failure(self, index: int, reason: ErrorBody) -> dict[str, Any]:
        error = error_of(self._group.job_ids[index], Status.FAILED, reason)
        assert error is not None
        return {"error": error.body.to_dict()}

    def _written(self, kind: str, index: int, data: dict[str, Any], *, ends: bool) -> bytes:
        fields = {"index": index, **data}
        if ends:
            fields["done"] = self._cursors.at_end
        return f"id: {self._cursors}\nevent: {kind}\ndata: {json.dumps(fields)}\n\n".encode()


async def _read(source: AsyncGenerator[Event, None]) -> Event | None:
    """The next event; None after the last."""
    return await anext(source, None)
