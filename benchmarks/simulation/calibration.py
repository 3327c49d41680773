"""What a simulation needs to know of a running service: its gateway's time and its ticks.

All is measured from outside: processor time of the gateway's process, and how long lone requests
and full batches take. What is left of a lone request's time, after all that is known, is the
worker's own: its loop's turns between a message and what it does about it.
"""

import asyncio
import os
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any

import httpx
from redis.asyncio import Redis

from benchmarks.serving_processes import RunningService
from benchmarks.simulation.costs import RedisCosts

LONG_STEPS = 40  # of the pictures whose ticks are timed
NUM_HOPS, NUM_REACTIONS = 8, 3  # of a lone request, as `benchmarks.simulation.broker` has them
_DENOISE = re.compile(r"denoise;dur=([0-9.]+)")
_AT_A_TIME = 8


async def calibrate(
    service: RunningService,
    redis: RedisCosts,
    sizes: Sequence[int],
    *,
    rounds: int,
    requests: int,
) -> dict[str, Any]:
    """Seconds: `ticks` by rows, `gateway` of a request, `hop_s`, `react_s`, `lone_s`.

    Args:
        service: with one worker and nothing else to do; one picture has 2 rows.
        redis: what commands cost its server.
        sizes: pictures at a time, ascending from 1.
        rounds: of each size.
        requests: of one step, for the gateway's processor time.
    """
    async with httpx.AsyncClient(base_url=service.url, timeout=600, trust_env=False) as client:
        await _pictures(client, 2 * _AT_A_TIME, 1)
        ticks = []
        for count in sizes:
            found = [
                seconds / LONG_STEPS
                for _ in range(rounds)
                for seconds in await _pictures(client, count, LONG_STEPS)
            ]
            ticks.append((2 * count, statistics.median(found)))
        lone_s = statistics.median([await _lone(client) for _ in range(max(20, requests // 10))])
        gateway_s = await _gateway_s(client, service.pids["gateway"], requests)
        healthz_s = statistics.median([await _healthz(client) for _ in range(100)])
    hop_s = await _hop_s(service.redis_url)
    # The client's share of a request: what a probe takes beyond its turn in the gateway, of which
    # the gateway's part is not known; half is a guess, and it matters little.
    client_s = healthz_s / 2
    redis_s = redis.call + redis.per_job
    known_s = ticks[0][1] + gateway_s + redis_s + NUM_HOPS * hop_s + client_s
    return {
        "ticks": ticks,
        "gateway": {"before": gateway_s / 2, "after": gateway_s / 2},
        "hop_s": hop_s,
        "client_s": client_s,
        "react_s": max(0.0, (lone_s - known_s) / NUM_REACTIONS),
        "lone_s": lone_s,
    }


async def _pictures(client: httpx.AsyncClient, count: int, steps: int) -> list[float]:
    """Seconds of denoising of so many pictures at once."""
    answers = await asyncio.gather(*(_generate(client, steps, seed) for seed in range(count)))
    found = [_DENOISE.search(answer.headers["server-timing"]) for answer in answers]
    return [float(match[1]) / 1000 for match in found if match]


async def _generate(client: httpx.AsyncClient, steps: int, seed: int) -> httpx.Response:
    answer = await client.post(
        "/v1/images/generations",
        json={"prompt": "a red circle", "steps": steps, "seed": seed},
        headers={"Accept": "image/png"},
    )
    return answer.raise_for_status()


async def _lone(client: httpx.AsyncClient) -> float:
    """Seconds of a request of one step when there is no other."""
    started = time.perf_counter()
    await _generate(client, 1, 0)
    return time.perf_counter() - started


async def _healthz(client: httpx.AsyncClient) -> float:
    started = time.perf_counter()
    (await client.get("/healthz")).raise_for_status()
    return time.perf_counter() - started


async def _gateway_s(client: httpx.AsyncClient, pid: int, requests: int) -> float:
    """Processor time of the gateway for one request, some at a time."""
    room = asyncio.Semaphore(_AT_A_TIME)

    async def one(seed: int) -> None:
        async with room:
            await _generate(client, 1, seed)

    before = _processor_s(pid)
    await asyncio.gather(*(one(seed) for seed in range(requests)))
    return (_processor_s(pid) - before) / requests


def _processor_s(pid: int) -> float:
    """Processor time of all threads of a process so far, whole hundredths of a second."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _hop_s(redis_url: str) -> float:
    """One way between a process and Redis."""
    times = []
    async with Redis.from_url(redis_url) as redis:
        for _ in range(200):
            started = time.perf_counter()
            await redis.ping()
            times.append(time.perf_counter() - started)
    return statistics.median(times) / 2
