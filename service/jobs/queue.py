"""The job queue on Redis Streams."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from service.errors import ErrorBody
from service.jobs.job import (
    Delivery,
    Event,
    EventKind,
    Job,
    Outcome,
    Priority,
    QueueDepth,
    Status,
)


class JobQueue:
    """Jobs in, outcomes out."""

    def __init__(
        self,
        redis: Redis,
        *,
        name: str,
        lease_s: float = 15,
        result_ttl_s: float = 600,
        max_waiting: int = 256,
        max_deliveries: int = 3,
        waiting_ttl_s: float = 86400,
        batch_share: float = 0.25,
        on_dead_letter: Callable[[str], None] | None = None,
    ) -> None: ...

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def ping(self) -> bool: ...

    async def put(
        self, jobs: Sequence[Job], payloads: Mapping[str, bytes] | None = None
    ) -> None: ...

    async def take(self, worker: str, credit: int, block_ms: int) -> list[Delivery]: ...

    async def renew(self, worker: str, deliveries: Iterable[Delivery]) -> set[str]: ...

    async def publish(
        self, job_id: str, kind: EventKind, data: dict[str, Any], blob: bytes | None = None
    ) -> None: ...

    async def finish(
        self, worker: str, delivery: Delivery, outputs: list[bytes], info: dict[str, Any]
    ) -> bool: ...

    async def fail(self, worker: str, delivery: Delivery, error: ErrorBody) -> bool: ...

    async def finish_cancelled(self, worker: str, delivery: Delivery) -> bool: ...

    async def give_back(self, worker: str, deliveries: Iterable[Delivery]) -> None: ...

    async def cancel(self, job_id: str) -> Status | None: ...

    async def cancelled(self, job_ids: Iterable[str]) -> set[str]: ...

    def events(self, job_id: str, after: str = "0") -> AsyncIterator[Event]: ...

    async def wait(self, job_id: str, timeout_s: float | None) -> Outcome: ...

    async def outcome(self, job_id: str) -> Outcome | None: ...

    async def job(self, job_id: str) -> tuple[Job, Status] | None: ...

    async def depth(self) -> dict[Priority, QueueDepth]: ...

    async def announce(self, worker: str, info: dict[str, Any], ttl_s: float) -> None: ...

    async def workers(self) -> dict[str, dict[str, Any]]: ...

    async def dead_letters(self, count: int = 100) -> list[dict[str, Any]]: ...
