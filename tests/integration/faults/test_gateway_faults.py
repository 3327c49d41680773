"""Gateways are killed and told to leave, while clients wait."""

import asyncio
import signal
from collections.abc import Callable

import httpx
import pytest

from tests.integration.faults.clients import ask_all, ask_until_served, outcomes, some_requests
from tests.integration.faults.processes import Service

MakeService = Callable[..., Service]
pytestmark = pytest.mark.timeout(120)  # many processes start and end here
SERVED = (200, "")


async def test_clients_of_other_gateways_do_not_notice_a_killed_one(
    make_service: MakeService,
) -> None:
    service = make_service(fake_step_s=0.03, max_rows=32)
    service.start_redis()
    doomed, other = service.start_gateway(), service.start_gateway()
    service.start_worker()
    service.await_ready(other, 1)
    lost = asyncio.create_task(
        ask_all([doomed], some_requests(8, steps=(40,), stream_share=0.5), at_a_time=8)
    )
    kept = asyncio.create_task(
        ask_all([other], some_requests(8, steps=(40,), stream_share=0.5), at_a_time=8)
    )
    await service.await_held_rows(16)
    service.gateways[doomed].kill()
    assert outcomes(await lost) == {(0, "disconnected"): 8}
    assert outcomes(await kept) == {SERVED: 8}
    later = await ask_all([other], some_requests(8, steps=(5,)), at_a_time=8)
    assert outcomes(later) == {SERVED: 8}


async def test_a_gateway_that_leaves_answers_its_running_requests(
    make_service: MakeService,
) -> None:
    """And takes no more: a load balancer's next request meets a closed door, not a hang."""
    service = make_service(fake_step_s=0.05, max_rows=32)
    service.start_redis()
    url, other = service.start_gateway(), service.start_gateway()
    service.start_worker()
    service.await_ready(url, 1)
    running = asyncio.create_task(
        ask_all([url], some_requests(12, steps=(40,), stream_share=0.5), at_a_time=12)
    )
    await service.await_held_rows(12)
    gateway = service.gateways[url]
    gateway.send(signal.SIGTERM)

    def closed() -> bool:
        try:
            httpx.get(f"{url}/healthz")
        except httpx.ConnectError:
            return True
        return False

    await asyncio.to_thread(service.await_state, closed)
    assert not running.done()
    assert outcomes(await running) == {SERVED: 12}
    assert await asyncio.to_thread(gateway.wait) == 0
    later = await ask_all([other], some_requests(4, steps=(5,)), at_a_time=4)
    assert outcomes(later) == {SERVED: 4}


async def test_everything_leaves_at_once_and_nothing_is_lost(make_service: MakeService) -> None:
    """The whole service is told to go under load, as when a machine shuts down."""
    service = make_service(fake_step_s=0.03)
    service.start_redis()
    url = service.start_gateway()
    worker = service.start_worker()
    service.await_ready(url, 1)
    asking = asyncio.create_task(
        ask_all([url], some_requests(16, steps=(40,)), at_a_time=16, send=ask_until_served)
    )
    await service.await_held_rows(8)
    service.gateways[url].send(signal.SIGTERM)
    worker.send(signal.SIGTERM)
    successor = service.start_worker()
    assert outcomes(await asking) == {SERVED: 16}
    assert await asyncio.to_thread(worker.wait) == 0
    assert await asyncio.to_thread(service.gateways[url].wait) == 0
    assert successor.alive
