"""How much each caller may ask for in a time, counted in Redis and so over all gateways."""

import asyncio
import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItem, parse_many
from limits.aio.storage import RedisStorage
from limits.aio.storage.redis.redispy import RedispyBridge
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import Redis

from service.jobs.connection import unavailable_as_service_error

_IPV6_PREFIX = 64  # what one subscriber has
_EPSILON_S = 0.001


@dataclass(frozen=True)
class Quota:
    """What a caller has left of the limit that is nearest to its end.

    `reset_s`: until all of it is there again. `retry_after_s`: until as much as was asked for is
    there; 0 when it was granted.
    """

    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float
    policy: str

    def headers(self) -> dict[str, str]:
        """The header fields of draft-ietf-httpapi-ratelimit-headers-06."""
        return {
            "ratelimit-limit": str(self.limit),
            "ratelimit-remaining": str(self.remaining),
            "ratelimit-reset": str(math.ceil(self.reset_s)),
            "ratelimit-policy": self.policy,
        }


class RateLimiter:
    """Limits on the pictures that one caller asks for.

    A window slides: what was asked for in the one before counts by the part of it that still lies
    within reach.

    Args:
        redis: the queue's client.
        limits: as `60/minute;5/second`.
        name: of the queue; gateways with one name count together.
    """

    def __init__(self, redis: Redis, limits: str, *, name: str) -> None:
        storage = _SharedClientStorage(redis, f"rpiae:{{{name}}}:limit")
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._storage = storage
        self._items = parse_many(limits)
        self._policy = ", ".join(f"{item.amount};w={item.get_expiry()}" for item in self._items)

    @property
    def most_at_once(self) -> int:
        """What can be granted at all."""
        return min(item.amount for item in self._items)

    async def charge(self, caller: str, cost: int) -> Quota:
        """Take `cost` from all of the caller's limits, or nothing when one has less left.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with unavailable_as_service_error():
            before = await self._quotas(caller, cost)
            refused = [quota for quota in before if quota.retry_after_s]
            if not refused:
                hits = [self._limiter.hit(item, caller, cost=cost) for item in self._items]
                granted = await asyncio.gather(*hits)
                after = await self._quotas(caller, 0 if all(granted) else cost)
                refused = [quota for quota in after if quota.retry_after_s]
                if not refused:
                    return min(after, key=lambda quota: quota.remaining)
        return max(refused, key=lambda quota: quota.retry_after_s)

    async def _quotas(self, caller: str, cost: int) -> Sequence[Quota]:
        windows = [
            self._storage.get_sliding_window(item.key_for(caller), item.get_expiry())
            for item in self._items
        ]
        return [
            self._quota(item, window, cost)
            for item, window in zip(self._items, await asyncio.gather(*windows), strict=True)
        ]

    def _quota(
        self, item: RateLimitItem, window: tuple[int, float, int, float], cost: int
    ) -> Quota:
        """From what was counted in the last window and this one, and how long each counts."""
        previous, previous_s, current, current_s = window
        length_s = item.get_expiry()
        # A part of one does not count.
        weighted = math.floor(previous * previous_s / length_s) + current
        room = item.amount - cost  # what may count when so much is to be granted
        if weighted <= room:
            retry_after_s = 0.0
        elif current <= room:  # the last window's weight goes down to 0 while this one lasts
            retry_after_s = previous_s - (room - current + 1) * length_s / previous + _EPSILON_S
        else:  # and then this one's
            retry_after_s = current_s - (room + 1) * length_s / current + _EPSILON_S
        return Quota(
            limit=item.amount,
            remaining=max(0, item.amount - weighted),
            reset_s=max(current_s if current else 0.0, previous_s if previous else 0.0),
            retry_after_s=retry_after_s,
            policy=self._policy,
        )


class _SharedClientStorage(RedisStorage):
    """The limits' counters through the queue's own client, whatever kind of Redis it speaks to."""

    STORAGE_SCHEME = None  # type: ignore[assignment] # not to be made from an address

    def __init__(self, redis: Redis, key_prefix: str) -> None:
        self._redis = redis
        super().__init__("redis://", implementation="redispy", key_prefix=key_prefix)

    def configure_bridge(self) -> None:
        assert isinstance(self.bridge, RedispyBridge)
        client: Any = self._redis
        self.bridge.storage = client
        self.bridge.connection_getter = lambda _readonly: client


def caller_address(host: str | None) -> str:
    """Stands for callers without keys; addresses of one IPv6 network count as one."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return f"address {host or 'unknown'}"
    if address.version == 6:
        return f"address {ipaddress.ip_network((address, _IPV6_PREFIX), strict=False)}"
    return f"address {address}"
