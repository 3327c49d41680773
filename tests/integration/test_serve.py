"""`rpiae serve` as users start it: everything in one command, kept alive, stopped in order."""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import TypeAlias

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

GENERATE = "/v1/images/generations"
PROMPT = {"prompt": "a red circle", "steps": 4}
LONG_STEPS = 8  # of 0.3 s
DEADLINE_S = 40

Series: TypeAlias = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture
def serve(fake_bundle: Path) -> Iterator[subprocess.Popen[str]]:
    """Two gateways, a worker of 0.3 s a step, and a private Redis."""
    environment = {name: text for name, text in os.environ.items() if name != "RPIAE_REDIS_URL"}
    environment |= {
        "RPIAE_BACKEND": "fake",
        "RPIAE_FAKE_STEP_S": "0.3",
        "RPIAE_LEASE_S": "1",
        "RPIAE_LOG_LEVEL": "error",
    }
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--processes", "2"]
    command += ["--bundle", str(fake_bundle)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def address_of(process: subprocess.Popen[str]) -> str:
    """From the line that says that a request would be answered."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found is not None, line
    return found[0]


def children(process_id: int, command: str = "") -> set[int]:
    """Process ids of the children that run a command, or of all."""
    listed = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    return {
        int(child)
        for child in listed
        if not command or f"\0{command}\0".encode() in Path(f"/proc/{child}/cmdline").read_bytes()
    }


def wait_until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline, "the state was not reached"
        time.sleep(0.05)


def counters(url: str) -> dict[Series, float]:
    """What only ever grows, of a gateway's /metrics."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        if family.type in ("counter", "histogram")
        for sample in family.samples
    }


@contextmanager
def watched_counters(url: str) -> Iterator[list[dict[Series, float]]]:
    """Counters again and again, as long as the context lasts, and once afterwards."""
    seen = [counters(url)]
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(0.05):
            seen.append(counters(url))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield seen
        finally:
            stopping.set()
        watching.result()
    seen.append(counters(url))


def steps_of_workers(seen: list[dict[Series, float]]) -> dict[str, float]:
    """How many steps each worker was last seen to have made, in order of appearance."""
    return {
        dict(labels)["worker"]: count
        for counted in seen
        for (name, labels), count in counted.items()
        if name == "rpiae_step_seconds_count" and count
    }


def check_counters(seen: list[dict[Series, float]]) -> None:
    """None falls, which Prometheus would take for a restart; the next worker has its own."""
    for before, after in itertools.pairwise(seen):
        assert [key for key in before if after.get(key, inf) < before[key]] == []
    killed, successor = steps_of_workers(seen).values()
    assert killed < LONG_STEPS
    assert successor == LONG_STEPS


def test_serve(serve: subprocess.Popen[str]):
    """Whoever is killed comes back; a signal lets requests end, and leaves nothing behind."""
    url = address_of(serve)
    assert httpx.get(f"{url}/readyz").json()["status"] == "ready"
    gateways, [worker] = children(serve.pid, "gateway"), children(serve.pid, "worker")
    assert len(gateways) == 2
    [redis] = children(serve.pid) - gateways - {worker}

    with ThreadPoolExecutor(1) as pool, watched_counters(url) as seen:
        long = {**PROMPT, "steps": LONG_STEPS}
        waiting = pool.submit(httpx.post, url + GENERATE, json=long, timeout=DEADLINE_S)
        wait_until(lambda: steps_of_workers(seen[-1:]))
        os.kill(worker, signal.SIGKILL)
        assert waiting.result().status_code == 200  # by the next worker
    assert worker not in children(serve.pid, "worker")
    check_counters(seen)
    for gateway in gateways:
        os.kill(gateway, signal.SIGKILL)
    wait_until(lambda: len(children(serve.pid, "gateway") - gateways) == 2)

    def answers() -> bool:
        try:
            return httpx.post(url + GENERATE, json=PROMPT).status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(answers)  # on the same port
    processes = children(serve.pid)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(httpx.post, url + GENERATE, json=PROMPT, timeout=DEADLINE_S)
        time.sleep(0.6)
        serve.send_signal(signal.SIGTERM)
        assert waiting.result().status_code == 200
    assert serve.wait(DEADLINE_S) == 0
    assert redis in processes
    assert not [process for process in processes if Path(f"/proc/{process}").exists()]
