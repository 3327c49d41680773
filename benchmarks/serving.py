"""Seconds for a picture and pictures per second, measured over HTTP.

    python -m benchmarks.serving [--url http://127.0.0.1:8000] [--steps 20] [--output report.json]

Without --url it starts `rpiae serve` on a free port and stops it at the end. Prints a table and
writes the same numbers, with the machine, the revision and the versions, as JSON.
"""

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from training.provenance import git_revision, hardware, short_revision, versions

PROMPT = "a red circle in the center on a blue background"
CONCURRENCIES = (1, 2, 4, 8)
START_DEADLINE_S = 120
STOP_DEADLINE_S = 60
REQUEST_TIMEOUT_S = 120


@dataclass(frozen=True)
class Measurement:
    """So many requests at a time: median and slowest in seconds, finished pictures per second."""

    concurrency: int
    num_pictures: int
    median_s: float
    slowest_s: float
    pictures_per_s: float


@contextmanager
def own_server(*options: str) -> Iterator[str]:
    """Address of a `rpiae serve` that is ready for requests, started with further options.

    Raises:
        RuntimeError: it ended before it was ready, or was not ready in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).with_name("rpiae")), "serve", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until_ready(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(STOP_DEADLINE_S)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"rpiae serve ended with status {process.returncode}")
        try:
            if httpx.get(f"{url}/readyz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"rpiae serve was not ready within {START_DEADLINE_S} s")


async def generate(client: httpx.AsyncClient, steps: int, seed: int) -> float:
    """Seconds from sending a request to the last byte of its picture."""
    start = time.perf_counter()
    answer = await client.post(
        "/v1/images/generations",
        json={"prompt": PROMPT, "steps": steps, "seed": seed},
        headers={"Accept": "image/png"},
    )
    answer.raise_for_status()
    return time.perf_counter() - start


async def measure(url: str, concurrency: int, rounds: int, steps: int) -> Measurement:
    """`concurrency` clients, each of which sends `rounds` requests one after the other."""

    async def client_run(client: httpx.AsyncClient, first_seed: int) -> list[float]:
        return [await generate(client, steps, first_seed + index) for index in range(rounds)]

    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S) as client:
        await generate(client, steps, seed=0)
        start = time.perf_counter()
        runs = await asyncio.gather(
            *(client_run(client, rounds * number) for number in range(concurrency))
        )
        elapsed_s = time.perf_counter() - start
    latencies_s = [latency for run in runs for latency in run]
    return Measurement(
        concurrency=concurrency,
        num_pictures=len(latencies_s),
        median_s=statistics.median(latencies_s),
        slowest_s=max(latencies_s),
        pictures_per_s=len(latencies_s) / elapsed_s,
    )


def print_table(measurements: list[Measurement]) -> None:
    print(f"{'at a time':>9} {'pictures':>8} {'median s':>9} {'slowest s':>9} {'pictures/s':>10}")
    for row in measurements:
        print(
            f"{row.concurrency:9} {row.num_pictures:8} {row.median_s:9.2f} "
            f"{row.slowest_s:9.2f} {row.pictures_per_s:10.2f}"
        )


def run(url: str, rounds: int, steps: int, output: Path) -> None:
    measurements = [
        asyncio.run(measure(url, concurrency, rounds, steps)) for concurrency in CONCURRENCIES
    ]
    machine, revision = hardware(), git_revision()
    report = {
        "revision": revision,
        "hardware": machine,
        "versions": versions(),
        "steps": steps,
        "measurements": [asdict(row) for row in measurements],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    where = f"{machine['processor']}, {machine['cores']} cores"
    print(f"{steps}-step pictures, {where}, revision {short_revision(revision)}")
    print_table(measurements)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="address of a running service; absent: start one")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of each picture")
    parser.add_argument("--rounds", type=int, default=5, help="requests of each client")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/serving.json"))
    arguments = parser.parse_args()
    measured = (arguments.rounds, arguments.steps, arguments.output)
    if arguments.url:
        run(arguments.url, *measured)
        return
    with own_server() as url:
        run(url, *measured)


if __name__ == "__main__":
    main()
