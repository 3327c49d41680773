"""What the application holds while it runs, and how an endpoint gets it."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import anyio
import httpx
from fastapi import Depends, Request

from models.class_names import ClassNames
from models.manifest import Manifest
from service.api.admission import Admission
from service.api.vocabulary import Vocabulary
from service.errors import QueueUnavailable
from service.jobs.job import RedisMemory
from service.jobs.queue import JobQueue
from service.jobs.reloads import Reloads
from service.served_model import ServedModel
from service.settings import Settings
from service.sizes import Sizes
from service.tracing import Tracing

_MEMORY_MAX_AGE_S = 1.0
_LOOK_EVERY_S = 0.25


@dataclass
class CurrentModel:
    """The model that requests are checked against; a reload changes it."""

    served: ServedModel


@dataclass
class LastWorkers:
    """Workers by name as they were last asked for, and when that was by time.monotonic."""

    infos: dict[str, dict[str, Any]] = field(default_factory=dict)
    at: float = 0.0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class LastMemory:
    """What the queue's server held when it was last asked, and when that was."""

    memory: RedisMemory | None = None
    at: float = 0.0


@dataclass(frozen=True)
class Gateway:
    """Opened by the application's lifespan, shared by all requests."""

    settings: Settings
    model: CurrentModel
    queue: JobQueue
    reloads: Reloads
    admission: Admission
    local_http: httpx.AsyncClient
    """For the workers' metrics on this machine."""
    waiting: set[asyncio.Task[Any]]
    """Requests that have jobs in the queue; the shutdown lets them cancel those."""
    draining: asyncio.Event
    """Set when the gateway shuts down: who only watches may go on elsewhere."""
    decoding: anyio.CapacityLimiter
    """Bounds the threads that decode uploads, and so the memory their pixels take."""
    tracing: Tracing
    last_workers: LastWorkers = field(default_factory=LastWorkers)
    last_memory: LastMemory = field(default_factory=LastMemory)

    @property
    def manifest(self) -> Manifest:
        """Of the model that is served now."""
        return self.model.served.manifest

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Of the model that is served now."""
        return self.model.served.vocabulary

    @property
    def class_names(self) -> ClassNames | None:
        """Of the model that is served now."""
        return self.model.served.class_names

    @property
    def sizes(self) -> Sizes:
        """The frames that requests may encode and decode."""
        return Sizes.of(self.manifest, self.settings.max_encode_side)

    async def serving_workers(self, max_age_s: float = 0) -> dict[str, dict[str, Any]]:
        """The live workers that take jobs for this gateway's model, and what they announced.

        Args:
            max_age_s: of an answer that may be given again, unless it named nobody.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        now, last = time.monotonic(), self.last_workers
        if last.infos and now - last.at < max_age_s:
            return last.infos
        workers = await self.queue.workers()
        model = self.manifest.name
        last.infos = {
            name: info
            for name, info in workers.items()
            if model in (info.get("model"), *info.get("also", ()))
        }
        last.at = now
        return last.infos

    async def await_worker(self, patience_s: float) -> bool:
        """Whether a worker serves this gateway's model now, or does within a time."""
        last, give_up_at = self.last_workers, time.monotonic() + patience_s
        while True:
            # Of many requests that wait, one asks.
            async with last.asking:
                if not last.infos and time.monotonic() - last.at >= _LOOK_EVERY_S:
                    with suppress(QueueUnavailable):  # its jobs wait for its return too
                        await self.serving_workers()
            left_s = give_up_at - time.monotonic()
            if last.infos or left_s <= 0:
                return bool(last.infos)
            await asyncio.sleep(min(_LOOK_EVERY_S, left_s))

    async def redis_memory(self) -> RedisMemory:
        """Of the queue's server, at most a second ago.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        now, last = time.monotonic(), self.last_memory
        if last.memory is None or now - last.at > _MEMORY_MAX_AGE_S:
            last.memory = await self.queue.memory()
            last.at = now
        return last.memory


class State(TypedDict):
    """The lifespan's state."""

    gateway: Gateway


async def gateway_of(request: Request) -> Gateway:
    """The running application's clients and settings.

    This and other dependencies are coroutines: FastAPI calls functions on threads.
    """
    gateway: Gateway = request.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(gateway_of)]
