"""`rpiae serve` as users start it: everything in one command, kept alive, stopped in order."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

GENERATE = "/v1/images/generations"
PROMPT = {"prompt": "a red circle", "steps": 4}
DEADLINE_S = 40


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


def test_serve(serve: subprocess.Popen[str]):
    """Whoever is killed comes back; a signal lets requests end, and leaves nothing behind."""
    url = address_of(serve)
    assert httpx.get(f"{url}/readyz").json()["status"] == "ready"
    gateways, [worker] = children(serve.pid, "gateway"), children(serve.pid, "worker")
    assert len(gateways) == 2
    [redis] = children(serve.pid) - gateways - {worker}

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(httpx.post, url + GENERATE, json=PROMPT, timeout=DEADLINE_S)
        time.sleep(0.6)
        os.kill(worker, signal.SIGKILL)
        assert waiting.result().status_code == 200  # by the next worker
    assert worker not in children(serve.pid, "worker")
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
