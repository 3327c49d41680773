"""Addresses of a Redis: one server, the master that sentinels name, or a shard of a cluster.

    redis://[user:password@]host[:port][/db]              rediss:// for TLS, unix:// for a socket
    redis+sentinel://[user:password@]host[:port],.../service[/db]
    redis+cluster://[user:password@]host[:port],...

User and password are those of the Redis servers; a sentinel's own are the options sentinel_username
and sentinel_password. rediss+sentinel and rediss+cluster speak TLS. Options follow after a `?`.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

Host: TypeAlias = tuple[str, int]

SCHEMES = ("redis", "rediss", "unix")
_PORTS = {"sentinel": 26379, "cluster": 6379}
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True)
class RedisAddress:
    """Where a Redis is.

    `url`: what redis-py understands, with the first host. `hosts`: sentinels, or a cluster's nodes.
    `service`: the master's name at the sentinels. `sentinel_options`: username and password there.
    """

    kind: Literal["server", "sentinel", "cluster"]
    url: str
    hosts: tuple[Host, ...] = ()
    service: str = ""
    sentinel_options: tuple[tuple[str, str], ...] = ()

    @property
    def tls(self) -> bool:
        return self.url.startswith("rediss:")


def parse_address(url: str) -> RedisAddress:
    """The address that a URL names.

    Raises:
        ValueError: says what is wrong, without the URL, which may hold a password.
    """
    scheme, separator, rest = url.partition("://")
    scheme, _, kind = scheme.lower().partition("+")
    known = scheme in SCHEMES and (not kind or (kind in _PORTS and scheme != "unix"))
    if not separator or not known:
        raise ValueError(
            "must start with redis://, rediss:// or unix://, or with redis+sentinel:// or "
            "redis+cluster:// (rediss+ for TLS)"
        )
    if not kind:
        _check_port(url)
        return RedisAddress("server", url)
    parts = urlsplit(f"{scheme}://{rest}")
    credentials, at, names = parts.netloc.rpartition("@")
    hosts = tuple(_parse_host(name, _PORTS[kind]) for name in names.split(","))
    options = dict(parse_qsl(parts.query))
    path = [unquote(part) for part in parts.path.split("/") if part]
    if kind == "sentinel":
        service, db = _service_and_db(path)
        sentinel_options = tuple(
            (name.removeprefix("sentinel_"), options.pop(name))
            for name in _SENTINEL_OPTIONS
            if name in options
        )
    else:
        if path not in ([], ["0"]):
            raise ValueError("a cluster has no databases: leave out what follows the last host")
        service, db, sentinel_options = "", 0, ()
    query = f"?{urlencode(options)}" if options else ""
    host, port = hosts[0]
    first = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return RedisAddress(
        "sentinel" if kind == "sentinel" else "cluster",
        f"{scheme}://{credentials}{at}{first}/{db}{query}",
        hosts,
        service,
        sentinel_options,
    )


def _parse_host(name: str, default_port: int) -> Host:
    parts = urlsplit(f"//{name}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("a port is a number from 1 to 65535") from None
    if not host:
        raise ValueError("a host is missing: write host1:port,host2:port")
    return host, port or default_port


def _check_port(url: str) -> None:
    if url.startswith("unix:"):
        return
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise ValueError("a port is a number from 1 to 65535") from None


def _service_and_db(path: list[str]) -> tuple[str, int]:
    if not path:
        raise ValueError(
            "the master's name is missing: redis+sentinel://host1:26379,host2:26379/service"
        )
    service, *rest = path
    if len(rest) > 1 or (rest and not rest[0].isdecimal()):
        raise ValueError("after the master's name comes nothing, or the number of a database")
    return service, int(rest[0]) if rest else 0
