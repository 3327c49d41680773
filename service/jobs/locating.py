"""Connections that find their server anew each time they connect.

A queue's keys share one hash tag, so they lie on one server also in a cluster. It is thus enough to
have connections that go to the right server: blocking reads, transactions and scripts then work as
with a single Redis. When the server is another one, commands fail (READONLY, MOVED, a broken
connection), the connection is closed, and the next attempt connects to where the server is by then.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, MovedError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError

from service.jobs.addresses import Host, RedisAddress

_SENTINEL_TIMEOUT_S = 1.0


class Locator(Protocol):
    """Knows where the server is."""

    async def locate(self) -> Host:
        """Where to connect to now."""

    async def accepts(self, connection: Connection) -> bool:
        """Whether a new connection has reached the right server."""

    def note_unreachable(self, host: Host) -> None:
        """This address does not serve."""

    def note_moved(self, host: Host) -> None:
        """The keys are on another node."""


class SentinelLocator:
    """Asks the sentinels for the master."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        tls = {
            name: value for name, value in parse_url(address.url).items() if name.startswith("ssl_")
        }
        self._options: dict[str, Any] = {
            "socket_timeout": _SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": _SENTINEL_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),
            "ssl": address.tls,
            **tls,
            **dict(address.sentinel_options),
        }

    async def locate(self) -> Host:
        """The present master.

        Raises:
            redis.exceptions.ConnectionError: no sentinel answers or knows a master that is up.
        """
        sentinel: Any = Sentinel(list(self._address.hosts), sentinel_kwargs=self._options)  # type: ignore[no-untyped-call]
        try:
            host, port = await sentinel.discover_master(self._address.service)
        finally:
            # A caller that is cancelled must not leave connections behind.
            await asyncio.shield(sentinel.aclose())
        return str(host), int(port)

    async def accepts(self, connection: Connection) -> bool:
        """Only a master: sentinels may be late, and a replica lacks what was written just now."""
        await connection.send_command("ROLE", check_health=False)
        try:
            role: Any = await connection.read_response()
        except NoPermissionError:
            return True
        return bool(role[0] == b"master")

    def note_unreachable(self, host: Host) -> None:
        """Nothing to do: the sentinels find out."""

    def note_moved(self, host: Host) -> None:
        """Nothing to do: a master has all keys."""


class ClusterLocator:
    """Starts at any node and follows the cluster's redirections; all keys lie in one slot."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._seeds = list(hosts)
        self._turn = 0
        self._host = self._seeds[0]

    async def locate(self) -> Host:
        """The node that was named last, or another known one if that could not be reached."""
        return self._host

    async def accepts(self, connection: Connection) -> bool:
        """Any node: the wrong ones redirect."""
        return True

    def note_unreachable(self, host: Host) -> None:
        """Let the next node say where the keys are."""
        if host == self._host:
            self._turn = (self._turn + 1) % len(self._seeds)
            self._host = self._seeds[self._turn]

    def note_moved(self, host: Host) -> None:
        """Go there, and remember it for the day when the configured nodes are gone."""
        self._host = host
        if host not in self._seeds:
            self._seeds.append(host)


class _LocatedMixin(Connection):
    def __init__(self, *, locator: Locator, **options: Any) -> None:
        super().__init__(**options)
        self._locator = locator

    async def _connect(self) -> None:
        host = await self._locator.locate()
        self.host, self.port = host
        try:
            await super()._connect()  # type: ignore[no-untyped-call]
        except OSError:  # also a timeout
            self._locator.note_unreachable(host)
            raise

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health)
        if not await self._locator.accepts(self):
            raise RedisConnectionError(f"{self.host}:{self.port} is no master")

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except MovedError as error:
            # A node that does not know its own name leaves it out.
            self._locator.note_moved((error.host or self.host, error.port))
            raise
        except ClusterDownError:  # also from a node that was left alone
            self._locator.note_unreachable((self.host, self.port))
            raise


class LocatedConnection(_LocatedMixin):
    """To wherever the locator says."""


class LocatedSSLConnection(_LocatedMixin, SSLConnection):
    """The same, with TLS."""
