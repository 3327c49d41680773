"""Connections to Redis that survive its restarts and failovers, in bounded time."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import QueueUnavailable
from service.jobs.addresses import parse_address
from service.jobs.locating import (
    ClusterLocator,
    LocatedConnection,
    LocatedSSLConnection,
    SentinelLocator,
)

ResultT = TypeVar("ResultT")

# Longest time that a read blocks, so that a shutdown is never far; below the socket's timeout.
BLOCK_SLICE_MS = 1000
_SOCKET_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 2.0
_PATIENCE_S = 2.0  # for connections that break; what times out is not repeated
_UNAVAILABLE_S = 5  # after which a server that refuses to write may have room again

# Errors that are over when the server has started or another one has taken its place.
_PASSING = (
    RedisConnectionError, RedisTimeoutError, ReadOnlyError, BusyLoadingError, AskError,
    ClusterDownError, TryAgainError,
)  # fmt: skip
# A master without replicas may have been replaced: the next connection goes to its successor.
_PASSING_CODES = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "UNBLOCKED", "NOREPLICAS")
# The server is there and cannot do it now.
_REASONS = {
    "OOM": "its memory is full",
    "MISCONF": "it cannot write to its disk",
    "NOREPLICAS": "its replicas are away",
    "BUSY": "it is busy",
}
# Redis 6.2 puts a script's error into a sentence of its own.
_CODE = re.compile(rf"(?:^|-)({'|'.join({*_PASSING_CODES, *_REASONS})})\b")
_REFUSALS = (AuthenticationError, AuthorizationError, NoPermissionError)

_give_up_at: ContextVar[float | None] = ContextVar("give_up_at", default=None)


class PatientRetry(Retry):
    """Repeats what failed, with jittered pauses, until its time is over.

    redis-py retries connecting inside the retry of a command; here both share the time of the
    outer one, so that a call ends when it should.
    """

    def __init__(self) -> None:
        super().__init__(reconnect_backoff(), retries=1)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PatientRetry":
        return PatientRetry()

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[ResultT]],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> ResultT:
        """See redis.asyncio.retry.Retry."""
        give_up_at = _give_up_at.get() or time.monotonic() + _PATIENCE_S
        token = _give_up_at.set(give_up_at)
        backoff = reconnect_backoff()
        failures = 0
        try:
            while True:
                try:
                    return await do()
                except RedisError as error:
                    failures += 1
                    if not _is_passing(error) or (is_retryable and not is_retryable(error)):
                        raise
                    await (fail(error, failures) if with_failure_count else fail(error))
                    pause_s = backoff.compute(failures)
                    if time.monotonic() + pause_s >= give_up_at:
                        raise
                    await asyncio.sleep(pause_s)
        finally:
            _give_up_at.reset(token)


@contextmanager
def no_retries() -> Iterator[None]:
    """Errors of the connection are raised at once, so that the caller learns of each restart."""
    token = _give_up_at.set(time.monotonic())
    try:
        yield
    finally:
        _give_up_at.reset(token)


class ConnectionPool(BlockingConnectionPool):
    """Waits in turn for a connection only where none is free, or somebody waits already.

    Most of what the client adds to a command's time are the locks that all callers pass there.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._num_waiting = 0

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        """See redis.asyncio.BlockingConnectionPool."""
        if self._num_waiting or not self._available_connections:
            self._num_waiting += 1
            try:
                return await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]
            finally:
                self._num_waiting -= 1
        connection = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        """See redis.asyncio.BlockingConnectionPool."""
        if self._num_waiting or connection.should_reconnect():
            await super().release(connection)
            return
        self._in_use_connections.remove(connection)
        self._available_connections.append(connection)


def reconnect_backoff() -> ExponentialWithJitterBackoff:
    """Pauses between attempts: 10 ms at first, half a second at most, in seconds."""
    return ExponentialWithJitterBackoff(cap=0.5, base=0.01)


def connect(redis_url: str, *, max_connections: int = 32, protocol: int | None = None) -> Redis:
    """Client for a JobQueue. Opens nothing yet; close it with `aclose`.

    A command that finds no free connection waits for one. A command whose connection breaks, or
    whose server loads its data or is no master any more, is repeated for about two seconds; one
    that is not answered ends after five. In a cluster the client reaches one hash tag's keys.

    Args:
        redis_url: in one of the forms of service/jobs/addresses.py.
        max_connections: a blocking read occupies one of them.
        protocol: RESP version 2 or 3; the client's own choice unless given.

    Raises:
        ValueError: the address has another form.
    """
    address = parse_address(redis_url)
    options: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout": _SOCKET_TIMEOUT_S,
        "socket_timeout": _SOCKET_TIMEOUT_S,
        "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        "retry": PatientRetry(),
        **({} if protocol is None else {"protocol": protocol}),
        **parse_url(address.url),
    }
    if address.kind != "server":
        sentinel = address.kind == "sentinel"
        options["locator"] = SentinelLocator(address) if sentinel else ClusterLocator(address.hosts)
        options["connection_class"] = LocatedSSLConnection if address.tls else LocatedConnection
    return Redis.from_pool(ConnectionPool(**options))


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
    """Turn the client's errors of a server that cannot serve into ours, for the gateway to answer.

    Raises:
        QueueUnavailable: the server is away, is no master, cannot write, or lets us not in.
    """
    try:
        yield
    except RedisError as error:
        reason = _REASONS.get(_code_of(error) or "")
        if reason:
            raise QueueUnavailable(
                f"the job queue takes no jobs at the moment, {reason}: try again later",
                retry_after_s=_UNAVAILABLE_S,
            ) from error
        if _is_refusal(error):
            raise QueueUnavailable(
                "the job queue refuses this service: check user and password in RPIAE_REDIS_URL, "
                "and what that user may do"
            ) from error
        if _is_passing(error):
            raise QueueUnavailable(
                "the job queue does not answer: try again in a moment", retry_after_s=1
            ) from error
        raise


def _is_passing(error: RedisError) -> bool:
    """Whether it may be over soon, so that a repeat has a chance."""
    if _is_refusal(error):
        return False
    return isinstance(error, _PASSING) or _code_of(error) in _PASSING_CODES


def _is_refusal(error: RedisError) -> bool:
    """Whether the server lets us not in; the client wraps what happens while it connects."""
    return isinstance(error, _REFUSALS) or isinstance(error.__cause__, _REFUSALS)


def _code_of(error: RedisError) -> str | None:
    """The code of a server's error, if it is one of those that are told apart here."""
    if isinstance(error, OutOfMemoryError):
        return "OOM"
    found = _CODE.search(str(error))
    return found[1] if found else None
