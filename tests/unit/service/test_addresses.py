"""Addresses of a Redis: what they name, and what is wrong with those that name nothing."""

import pytest
from redis.asyncio.connection import parse_url

from service.jobs.addresses import RedisAddress, parse_address
from service.jobs.connection import connect
from service.jobs.locating import LocatedConnection, LocatedSSLConnection


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:p%40ss@10.0.0.1:6380/2?socket_timeout=3",
        "rediss://[::1]:6379",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_a_single_server_s_address_stays_as_it_is(url: str) -> None:
    assert parse_address(url) == RedisAddress("server", url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "redis+sentinel://a,b:26380/main",
            RedisAddress("sentinel", "redis://a:26379/0", (("a", 26379), ("b", 26380)), "main"),
        ),
        (
            "rediss+sentinel://user:s%3Ae%40cret@[::1]:7,h2/my%20main/3?socket_timeout=2",
            RedisAddress(
                "sentinel",
                "rediss://user:s%3Ae%40cret@[::1]:7/3?socket_timeout=2",
                (("::1", 7), ("h2", 26379)),
                "my main",
            ),
        ),
        (
            "redis+sentinel://:pw@a/main?sentinel_password=x%26y&sentinel_username=u",
            RedisAddress(
                "sentinel",
                "redis://:pw@a:26379/0",
                (("a", 26379),),
                "main",
                (("username", "u"), ("password", "x&y")),
            ),
        ),
        (
            "redis+cluster://user:pw@n1:7000,n2",
            RedisAddress("cluster", "redis://user:pw@n1:7000/0", (("n1", 7000), ("n2", 6379))),
        ),
        (
            "rediss+cluster://n1/0",
            RedisAddress("cluster", "rediss://n1:6379/0", (("n1", 6379),)),
        ),
    ],
)
def test_sentinels_and_clusters_are_told_apart(url: str, expected: RedisAddress) -> None:
    assert parse_address(url) == expected


def test_credentials_and_options_reach_the_client() -> None:
    address = parse_address("redis+sentinel://user:s%3Ae%40cret@a,b/main/3?socket_timeout=2")
    options = parse_url(address.url)
    assert (options["username"], options["password"]) == ("user", "s:e@cret")
    assert (options["db"], options["socket_timeout"]) == (3, 2.0)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:6379", "redis://"),
        ("http://localhost", "redis\\+sentinel://"),
        ("redis+raft://a", "redis\\+cluster://"),
        ("unix+sentinel://a/main", "rediss\\+"),
        ("redis://localhost:port", "port"),
        ("redis://localhost:70000", "port"),
        ("redis+sentinel://a:26379,b:26379", "name is missing"),
        ("redis+sentinel://a,b/", "name is missing"),
        ("redis+sentinel://a,,b/main", "host is missing"),
        ("redis+sentinel:///main", "host is missing"),
        ("redis+sentinel://a:port/main", "port"),
        ("redis+sentinel://a/main/one", "database"),
        ("redis+sentinel://a/main/1/2", "database"),
        ("redis+cluster://a,b/1", "no databases"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str, reason: str) -> None:
    secret = url.replace("://", "://:hush@")
    with pytest.raises(ValueError, match=reason) as refused:
        parse_address(secret)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "connection_class"),
    [
        ("redis+sentinel://a/main", LocatedConnection),
        ("rediss+sentinel://a/main", LocatedSSLConnection),
        ("redis+cluster://a", LocatedConnection),
        ("rediss+cluster://a", LocatedSSLConnection),
    ],
)
def test_the_client_looks_for_its_server(url: str, connection_class: type) -> None:
    assert connect(url).connection_pool.connection_class is connection_class
