"""Jobs that were answered 202: they outlive every process that had to do with them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import httpx
import pytest

from tests.integration.faults.clients import (
    REQUEST_TIMEOUT_S,
    Request,
    check_picture,
    some_requests,
)
from tests.integration.faults.processes import Service

MakeService = Callable[..., Service]
pytestmark = pytest.mark.timeout(120)  # many processes start and end here
FINAL = {"succeeded", "failed", "cancelled"}


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
        yield client


async def accepted(http: httpx.AsyncClient, url: str, request: Request) -> str:
    """Path of the job."""
    answer = await http.post(
        f"{url}/v1/images/generations",
        json=request.body,
        headers={"Prefer": "respond-async", "Accept": "image/png"},
    )
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


async def check_result(http: httpx.AsyncClient, url: str, path: str, request: Request) -> None:
    """Wait for the job's end, by asking again; it has the right picture."""
    while True:
        state = (await http.get(f"{url}{path}")).json()
        if state["status"] in FINAL:
            break
        await asyncio.sleep(0.1)
    assert state["status"] == "succeeded", state
    check_picture(request, (await http.get(f"{url}{path}/result")).content)


async def test_accepted_jobs_outlive_everything(
    make_service: MakeService, http: httpx.AsyncClient
) -> None:
    """Redis with its file, gateway and worker are killed together and started again."""
    on_disk = ("--appendonly", "yes", "--appendfsync", "always")
    service = make_service(fake_step_s=0.05)
    redis = service.start_redis(*on_disk)
    url = service.start_gateway()
    worker = service.start_worker()
    service.await_ready(url, 1)
    requests = some_requests(16, steps=(20,))
    paths = [await accepted(http, url, request) for request in requests]
    await service.await_held_rows(4)
    for process in (worker, redis, service.gateways[url]):
        process.kill()

    service.start_redis(*on_disk)
    url = service.start_gateway()
    service.start_worker()
    service.await_ready(url, 1)
    for path, request in zip(paths, requests, strict=True):
        await check_result(http, url, path, request)


async def events(http: httpx.AsyncClient, url: str, after: str = "") -> AsyncIterator[str]:
    """Ids of a job's events, as they come."""
    headers = {"Last-Event-ID": after} if after else {}
    async with http.stream("GET", f"{url}/events", headers=headers) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("id:"):
                yield line.removeprefix("id:").strip()


async def test_events_are_followed_on_another_gateway(
    make_service: MakeService, http: httpx.AsyncClient
) -> None:
    """From where the killed one left off: nothing twice, nothing left out."""
    service = make_service(fake_step_s=0.1)
    service.start_redis()
    doomed, other = service.start_gateway(), service.start_gateway()
    service.start_worker()
    service.await_ready(other, 1)
    [request] = some_requests(1, steps=(20,))
    path = await accepted(http, doomed, request)
    followed: list[str] = []
    with suppress(httpx.TransportError):
        async for event_id in events(http, f"{doomed}{path}"):
            followed.append(event_id)
            if len(followed) == 5:
                service.gateways[doomed].kill()
    assert len(followed) >= 5
    followed += [event_id async for event_id in events(http, f"{other}{path}", followed[-1])]
    assert followed == [event_id async for event_id in events(http, f"{other}{path}")]
    await check_result(http, other, path, request)
