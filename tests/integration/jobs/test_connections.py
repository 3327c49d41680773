"""The client's connections: shared by more callers than there are, in turn."""

import asyncio

from redis.asyncio import Redis

from service.jobs.connection import ConnectionPool, connect


async def test_callers_beyond_the_connections_wait_in_turn(redis_url: str, queue_name: str) -> None:
    redis = connect(redis_url, max_connections=2)
    ended: list[int] = []

    async def call(number: int) -> None:
        await redis.blpop([f"{queue_name}:{number}"], timeout=0.05)
        ended.append(number)

    try:
        await asyncio.gather(*(call(number) for number in range(8)))
        assert sorted(ended[:2]) == [0, 1]
        assert {number // 2 for number in ended[6:]} == {3}
        assert len(pool_of(redis)._available_connections) == 2
    finally:
        await redis.aclose()


async def test_who_comes_later_does_not_overtake_who_waits(redis_url: str, queue_name: str) -> None:
    redis = connect(redis_url, max_connections=1)
    try:
        held = await pool_of(redis).get_connection()
        waiting = asyncio.create_task(pool_of(redis).get_connection())
        await asyncio.sleep(0)
        await pool_of(redis).release(held)
        later = asyncio.create_task(pool_of(redis).get_connection())
        assert await waiting is held
        assert not later.done()
        await pool_of(redis).release(held)
        assert await later is held
        await pool_of(redis).release(held)
    finally:
        await redis.aclose()


async def test_a_connection_that_broke_while_it_was_free_is_made_anew(redis_url: str) -> None:
    redis = connect(redis_url, max_connections=1)
    try:
        first = await redis.client_id()
        connection = pool_of(redis)._available_connections[0]
        await connection.disconnect()
        assert await redis.client_id() > first
    finally:
        await redis.aclose()


async def test_a_cancelled_caller_leaves_its_connection_to_the_next(
    redis_url: str, queue_name: str
) -> None:
    redis = connect(redis_url, max_connections=1)
    try:
        blocked = asyncio.create_task(redis.blpop([queue_name], timeout=4))
        waiting = asyncio.create_task(redis.ping())
        await asyncio.sleep(0.05)
        blocked.cancel()
        assert await waiting
    finally:
        await redis.aclose()


def pool_of(redis: Redis) -> ConnectionPool:
    pool = redis.connection_pool
    assert isinstance(pool, ConnectionPool)
    return pool
