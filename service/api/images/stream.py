"""Server-sent events of the image endpoints, in OpenAI's form: previews and finished pictures."""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Literal, TypeAlias

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.disconnect import cancel_tasks, unless_disconnected
from service.api.error_response import CLIENT_CLOSED_REQUEST
from service.api.images.plans import ImageCall
from service.api.images.schemas import CompletedEvent, PartialImageEvent
from service.api.request_context import RequestContext
from service.api.state import Gateway
from service.errors import NotFound, QueueUnavailable, ServiceError
from service.jobs.job import GenerateParams, Job

_KEEP_ALIVE_S = 15.0  # below the idle limits of common proxies
_MAX_UNREAD = 16  # events; a reader that is further behind gets no more previews

EventFamily: TypeAlias = Literal["image_generation", "image_edit"]
# Events as they are sent, and the tasks that have no more of them.
_Ready: TypeAlias = asyncio.Queue[bytes | asyncio.Task[None]]


class ImageEventStream(StreamingResponse):
    """Streams a call whose jobs are already in the queue; a client that leaves cancels the rest."""

    def __init__(
        self, call: ImageCall, context: RequestContext, family: EventFamily, gateway: Gateway
    ) -> None:
        self._call = call
        self._gateway = gateway
        self._context = context
        self._family: EventFamily = family
        super().__init__(
            self._events(),
            media_type="text/event-stream",
            headers={**call.plan.headers, "cache-control": "no-store"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Around the whole answer: a client may leave before the generator has run at all.
        async with self._call.group as group:
            # Before the answer begins, so that it can still be a refusal.
            await unless_disconnected(Request(scope, receive), group.await_worker())
            with self._gateway.tracing.span("stream"):
                await super().__call__(scope, receive, send)

    async def _events(self) -> AsyncIterator[bytes]:
        ready: _Ready = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._follow(index, job, ready))
            for index, job in enumerate(self._call.group.jobs)
        ]
        for task in tasks:
            task.add_done_callback(ready.put_nowait)
        num_running = len(tasks)
        try:
            while num_running:
                try:
                    async with asyncio.timeout(_KEEP_ALIVE_S):
                        arrived = await ready.get()
                except TimeoutError:
                    yield b": still working\n\n"
                    continue
                if isinstance(arrived, bytes):
                    yield arrived
                else:
                    num_running -= 1
                    arrived.result()
        except ServiceError as error:
            self._context.failure = error.status
            yield _event("error", json.dumps({"type": "error", "error": error.body.to_dict()}))
        except asyncio.CancelledError:
            self._context.failure = CLIENT_CLOSED_REQUEST
            raise
        finally:
            await cancel_tasks(tasks)

    async def _follow(self, index: int, job: Job, ready: _Ready) -> None:
        """The events of one picture, the last of them the finished picture."""
        assert isinstance(job.params, GenerateParams)
        if job.params.partial_images:
            # Whatever keeps previews away, the picture or its error comes after them.
            with suppress(TimeoutError, QueueUnavailable, NotFound):
                await self._follow_previews(index, job, ready)
        outcome = await self._call.group.outcome(job)
        (picture,) = outcome.outputs
        ready.put_nowait(await asyncio.to_thread(self._completed, index, job.params.seed, picture))

    async def _follow_previews(self, index: int, job: Job, ready: _Ready) -> None:
        """Previews as they come, until the job ends or its time is over."""
        assert job.deadline_at is not None
        next_number = 0
        async with (
            asyncio.timeout(max(0.0, job.deadline_at - time.time())),
            aclosing(self._gateway.queue.events(job.id)) as events,
        ):
            async for event in events:
                if event.kind != "preview" or not event.blob or ready.qsize() >= _MAX_UNREAD:
                    continue
                number = event.data["index"]
                if number >= next_number:  # another worker that begins anew repeats the first
                    next_number = number + 1
                    ready.put_nowait(
                        await asyncio.to_thread(self._partial, index, number, event.blob)
                    )

    def _partial(self, index: int, number: int, picture: bytes) -> bytes:
        event = PartialImageEvent(
            type=f"{self._family}.partial_image",
            b64_json=b64encode(picture).decode(),
            partial_image_index=number,
            created_at=int(time.time()),
            size=self._call.plan.size,
            output_format=self._call.plan.output_format,
            image_index=index,
        )
        return _event(event.type, event.model_dump_json())

    def _completed(self, index: int, seed: int, picture: bytes) -> bytes:
        event = CompletedEvent(
            type=f"{self._family}.completed",
            b64_json=b64encode(picture).decode(),
            created_at=int(time.time()),
            size=self._call.plan.size,
            output_format=self._call.plan.output_format,
            usage=self._call.plan.usage,
            image_index=index,
            seed=seed,
        )
        return _event(event.type, event.model_dump_json())


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()
