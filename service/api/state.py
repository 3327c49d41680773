"""What the application holds while it runs, and how an endpoint gets it."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import anyio
import httpx
from fastapi import Depends, Request

from models.class_names import ClassNames
from models.manifest import Manifest
from service.api.vocabulary import Vocabulary
from service.jobs.queue import JobQueue
from service.settings import Settings
from service.sizes import Sizes


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
    local_http: httpx.AsyncClient
    """For the workers' metrics on this machine."""
    waiting: set[asyncio.Task[Any]]
    """Requests that have jobs in the queue; the shutdown lets them cancel those."""
    decoding: anyio.CapacityLimiter
    """Bounds the threads that decode uploads, and so the memory their pixels take."""

    @property
    def sizes(self) -> Sizes:
        """The frames that requests may encode and decode."""
        return Sizes.of(self.manifest, self.settings.max_encode_side)

    async def serving_workers(self) -> dict[str, dict[str, Any]]:
        """The live workers that have this gateway's model, and what they announced.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        workers = await self.queue.workers()
        model = self.manifest.name
        return {name: info for name, info in workers.items() if info.get("model") == model}


class State(TypedDict):
    """The lifespan's state."""

    gateway: Gateway


def gateway_of(request: Request) -> Gateway:
    """The running application's clients and settings."""
    gateway: Gateway = request.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(gateway_of)]
