"""Server-sent events of the image endpoints, in OpenAI's form: one completed event per picture."""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Literal

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.error_response import CLIENT_CLOSED_REQUEST
from service.api.images.schemas import CompletedEvent
from service.api.images.service import ImageCall
from service.api.job_group import cancel_tasks
from service.api.request_context import RequestContext
from service.errors import ServiceError
from service.jobs.job import GenerateParams, Job

_KEEP_ALIVE_S = 15.0  # below the idle limits of common proxies

EventName = Literal["image_generation.completed", "image_edit.completed"]


class ImageEventStream(StreamingResponse):
    """Streams a call whose jobs are already in the queue; a client that leaves cancels the rest."""

    def __init__(self, call: ImageCall, context: RequestContext, event_name: EventName) -> None:
        self._call = call
        self._context = context
        self._event_name = event_name
        super().__init__(
            self._events(),
            media_type="text/event-stream",
            headers={**call.headers, "cache-control": "no-store"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Around the whole answer: a client may leave before the generator has run at all.
        async with self._call.group:
            await super().__call__(scope, receive, send)

    async def _events(self) -> AsyncIterator[bytes]:
        group = self._call.group
        waits = {asyncio.ensure_future(group.outcome(job)): job for job in group.jobs}
        pending = set(waits)
        try:
            while pending:
                done, pending = await asyncio.wait(
                    pending, timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    yield b": still working\n\n"
                for wait in done:
                    yield self._completed(waits[wait], wait.result().outputs[0])
        except ServiceError as error:
            self._context.failure = error.status
            yield _event("error", json.dumps({"error": error.body.to_dict()}))
        except asyncio.CancelledError:
            self._context.failure = CLIENT_CLOSED_REQUEST
            raise
        finally:
            await cancel_tasks(waits)

    def _completed(self, job: Job, picture: bytes) -> bytes:
        assert isinstance(job.params, GenerateParams)
        event = CompletedEvent(
            type=self._event_name,
            b64_json=b64encode(picture).decode(),
            created_at=int(time.time()),
            size=self._call.size,
            output_format=self._call.output_format,
            usage=self._call.usage,
            seed=job.params.seed,
        )
        return _event(self._event_name, event.model_dump_json())


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()
