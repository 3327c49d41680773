"""Connections to Redis that survive its restarts: bounded, with jittered retries."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import QueueUnavailable

# Longest time that a read blocks, so that a shutdown is never far; below the socket's timeout.
BLOCK_SLICE_MS = 1000
_SOCKET_TIMEOUT_S = 5.0

UNAVAILABLE = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OutOfMemoryError)


def reconnect_backoff() -> ExponentialWithJitterBackoff:
    """Pauses between attempts: 10 ms at first, half a second at most, in seconds."""
    return ExponentialWithJitterBackoff(cap=0.5, base=0.01)


def connect(redis_url: str, *, max_connections: int = 32, protocol: int | None = None) -> Redis:
    """Client for a JobQueue. Opens nothing yet; close it with `aclose`.

    A command that finds no free connection waits for one. A command whose connection breaks is
    repeated for about two seconds.

    Args:
        redis_url: redis://, rediss:// or unix:// address.
        max_connections: a blocking read occupies one of them.
        protocol: RESP version 2 or 3; the client's own choice unless given.

    Raises:
        ValueError: the address has another scheme.
    """
    options = {} if protocol is None else {"protocol": protocol}
    pool = BlockingConnectionPool.from_url(
        redis_url,
        max_connections=max_connections,
        timeout=_SOCKET_TIMEOUT_S,
        socket_timeout=_SOCKET_TIMEOUT_S,
        socket_connect_timeout=_SOCKET_TIMEOUT_S,
        retry=Retry(reconnect_backoff(), retries=8),
        **options,
    )
    return Redis.from_pool(pool)


class Cancellation:
    """Makes up for cancellations of the current task that get lost.

    redis-py sends each command inside `asyncio.wait_for`, whose Python 3.11 version swallows a
    cancellation that arrives in the same turn as the end of the sending. A loop that would go on
    waiting asks `check` first.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "made inside a task"
        self._task = task
        self._num_known = task.cancelling()  # of those, somebody has taken note

    def check(self) -> None:
        """Raise CancelledError when the task was cancelled since this object was made."""
        if self._task.cancelling() > self._num_known:
            raise asyncio.CancelledError


@contextmanager
def unavailable_as_service_error() -> Iterator[None]:
    """Turn the client's connection errors into ours, which a gateway can answer with."""
    try:
        yield
    except UNAVAILABLE as error:
        raise QueueUnavailable(
            "the job queue does not answer: try again in a moment", retry_after_s=1
        ) from error
