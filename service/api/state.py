"""What the application holds while it runs, and how an endpoint gets it."""

from dataclasses import dataclass
from typing import Annotated, TypedDict

import anyio
from fastapi import Depends, Request

from models.manifest import Manifest
from service.api.vocabulary import Vocabulary
from service.jobs.queue import JobQueue
from service.settings import Settings


@dataclass(frozen=True)
class Gateway:
    """Opened by the application's lifespan, shared by all requests."""

    settings: Settings
    manifest: Manifest
    bundle_written_at: int
    """Unix time in seconds."""
    vocabulary: Vocabulary | None
    queue: JobQueue
    decoding: anyio.CapacityLimiter
    """Bounds the threads that decode uploads, and so the memory their pixels take."""

    async def serving_workers(self) -> list[str]:
        """Names of the live workers that have this gateway's model.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        workers = await self.queue.workers()
        return [name for name, info in workers.items() if info.get("model") == self.manifest.name]


class State(TypedDict):
    """The lifespan's state."""

    gateway: Gateway


def gateway_of(request: Request) -> Gateway:
    """The running application's clients and settings."""
    gateway: Gateway = request.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(gateway_of)]
