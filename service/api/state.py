"""What the application holds while it runs, and how an endpoint gets it."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import anyio
import httpx
from fastapi import Depends, Request

from models.class_names import ClassNames
from models.manifest import Manifest
from service.api.admission import Admission
from service.api.vocabulary import Vocabulary
from service.jobs.queue import JobQueue
from service.settings import Settings
from service.sizes import Sizes


@dataclass
class LastWorkers:
    """Workers by name as they were last asked for, and when that was by time.monotonic."""

    infos: dict[str, dict[str, Any]] = field(default_factory=dict)
    at: float = 0.0


@dataclass(frozen=True)
class Gateway:
    """Opened by the application's lifespan, shared by all requests."""

    settings: Settings
    manifest: Manifest
    bundle_written_at: int
    """Unix time in seconds."""
    vocabulary: Vocabulary | None
    class_names: ClassNames | None
    queue: JobQueue
    admission: Admission
    local_http: httpx.AsyncClient
    """For the workers' metrics on this machine."""
    waiting: set[asyncio.Task[Any]]
    """Requests that have jobs in the queue; the shutdown lets them cancel those."""
    draining: asyncio.Event
    """Set when the gateway shuts down: who only watches may go on elsewhere."""
    decoding: anyio.CapacityLimiter
    """Bounds the threads that decode uploads, and so the memory their pixels take."""
    last_workers: LastWorkers = field(default_factory=LastWorkers)

    @property
    def sizes(self) -> Sizes:
        """The frames that requests may encode and decode."""
        return Sizes.of(self.manifest, self.settings.max_encode_side)

    async def serving_workers(self, max_age_s: float = 0) -> dict[str, dict[str, Any]]:
        """The live workers that have this gateway's model, and what they announced.

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
        last.infos = {name: info for name, info in workers.items() if info.get("model") == model}
        last.at = now
        return last.infos


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
