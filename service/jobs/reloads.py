"""What the workers of a queue were asked to load, and the models that they serve, described."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from service.jobs.connection import unavailable_as_service_error

_DESCRIBED_S = 3600  # beyond the latest sign of life of a worker with that model


@dataclass(frozen=True)
class Reload:
    """The latest request to load a bundle.

    number: 0 before the first; bundle: its directory, empty: each worker reads its own again; at:
    Unix seconds.
    """

    number: int = 0
    bundle: str = ""
    at: float = 0.0


class Reloads:
    """The requests of one queue, in its Redis.

    A bundle that a worker has loaded instead of the configured one stays in effect for workers that
    are started again with the same configuration.

    Every method raises QueueUnavailable when Redis does not answer.
    """

    def __init__(self, redis: Redis, *, name: str) -> None:
        """`name`: of the queue."""
        self._redis: Any = redis
        self._root = f"rpiae:{{{name}}}"
        self._key = f"{self._root}:reload"

    async def ask(self, bundle: str = "") -> Reload:
        """Ask every worker to load a bundle, an absolute path, or its own again."""
        at = time.time()
        with unavailable_as_service_error():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(self._key, mapping={"bundle": bundle, "at": at})
                pipe.hincrby(self._key, "number", 1)
                _, number = await pipe.execute()
        return Reload(int(number), bundle, at)

    async def latest(self) -> Reload:
        """What was asked last."""
        stored = await self._stored()
        return Reload(
            number=int(stored.get("number", "0")),
            bundle=stored.get("bundle", ""),
            at=float(stored.get("at", "0")),
        )

    async def swapped_in(self, configured: str) -> str:
        """The bundle that is served instead of the configured one, or that one."""
        stored = await self._stored()
        if stored.get("configured") == configured:
            return stored.get("serving") or configured
        return configured

    async def note_serving(self, configured: str, bundle: str) -> None:
        """A worker serves this bundle now, whatever its configuration names."""
        with unavailable_as_service_error():
            await self._redis.hset(self._key, mapping={"configured": configured, "serving": bundle})

    async def describe(self, digest: str, description: str) -> None:
        """Keep what a gateway must know of a served model while workers say that they have it."""
        key = self._model_key(digest)
        with unavailable_as_service_error():
            if not await self._redis.expire(key, _DESCRIBED_S):
                await self._redis.set(key, description, ex=_DESCRIBED_S)

    async def description(self, digest: str) -> str | None:
        """What `describe` kept, or None."""
        with unavailable_as_service_error():
            stored: bytes | None = await self._redis.get(self._model_key(digest))
        return None if stored is None else stored.decode()

    async def _stored(self) -> Mapping[str, str]:
        with unavailable_as_service_error():
            stored: dict[bytes, bytes] = await self._redis.hgetall(self._key)
        return {name.decode(): value.decode() for name, value in stored.items()}

    def _model_key(self, digest: str) -> str:
        return f"{self._root}:model:{digest}"
