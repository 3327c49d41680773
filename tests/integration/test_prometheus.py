"""Every expression of the dashboards, rules and alerts, on a server under load, by Prometheus.

`rpiae serve` with two gateways, two workers and the fake backend; the real Prometheus with the
files of deploy/prometheus, but a second between two scrapes instead of fifteen.
"""

import io
import itertools
import math
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image

from benchmarks.serving import own_server
from tests.monitoring_files import (
    DASHBOARDS,
    PROMETHEUS,
    alerts,
    expressions_of,
    read_dashboard,
    rules,
    without_threshold,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

DEADLINE_S = 40
POLL_S = 0.1
SCRAPE_S = 1
RATE_WINDOW = "30s"
VARIABLES = {"__rate_interval": RATE_WINDOW, "model": ".*", "task": ".*", "worker": ".*"}
SIDE = 16  # of the fake bundle's pictures
MAX_JOBS = 8
NUM_CLIENTS = 6
LONG_STEPS = 100  # of 20 ms; longer than a busy machine takes to see that a client has left
OUTCOMES = {200: "ok", 422: "client_error", 429: "rejected", 504: "expired"}
NUM_ROUNDS = 50  # of the ten kinds of requests below

Kind = tuple[str, Callable[[httpx.Client, int], str]]


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "red").save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = picture()


def generate(**fields: Any) -> Callable[[httpx.Client, int], str]:
    def send(client: httpx.Client, seed: int) -> str:
        body = {"prompt": "a red circle", "steps": 4, "seed": seed, **fields}
        return OUTCOMES[client.post("/v1/images/generations", json=body).status_code]

    return send


def upload(path: str, **fields: str) -> Callable[[httpx.Client, int], str]:
    def send(client: httpx.Client, seed: int) -> str:
        data = {"steps": "4", "seed": str(seed), **fields}
        return OUTCOMES[client.post(path, data=data, files={"image": PICTURE}).status_code]

    return send


def encode(client: httpx.Client, _seed: int) -> str:
    headers = {"content-type": "image/png"}
    answer = client.post("/v1/latents/encode", content=PICTURE, headers=headers)
    return OUTCOMES[answer.status_code]


def decode(client: httpx.Client, seed: int) -> str:
    body = {"latents": [[[[seed / 1000] * 2] * 2] * 4]}
    return OUTCOMES[client.post("/v1/latents/decode", json=body).status_code]


def leave_midway(client: httpx.Client, seed: int) -> str:
    """Close the connection at the first preview, when most steps are still to be done."""
    body = {"steps": LONG_STEPS, "partial_images": 3, "stream": True}
    body |= {"prompt": "a star", "seed": seed}
    with client.stream("POST", "/v1/images/generations", json=body) as answer:
        assert answer.status_code == 200
        next(answer.iter_lines())
    return "cancelled"


# Ten kinds of requests, of every task and every outcome but a failure.
KINDS: list[Kind] = [
    ("generate", generate(deadline_ms=60_000)),
    ("generate", generate(priority="batch")),
    ("generate", generate(steps=0)),
    ("generate", generate(n=MAX_JOBS + 1)),
    ("generate", generate(deadline_ms=1)),
    ("generate", leave_midway),
    ("edit", upload("/v1/images/edits", prompt="make it blue")),
    ("variation", upload("/v1/images/variations")),
    ("encode", encode),
    ("decode", decode),
]


def two_ports() -> int:
    """A free port whose successor is free too."""
    while True:
        with suppress(OSError, OverflowError), socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            with socket.create_server(("127.0.0.1", port + 1)):
                return port


class Prometheus:
    """A running one; asks it by its HTTP interface."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url)

    def is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return self._http.get("/-/ready").status_code == 200
        return False

    def query(self, expression: str, at: float) -> list[dict[str, Any]]:
        answer = self._http.get("/api/v1/query", params={"query": expression, "time": at}).json()
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def value(self, expression: str, at: float) -> float:
        samples = self.query(expression, at)
        return float(samples[0]["value"][1]) if samples else math.nan

    def close(self) -> None:
        self._http.close()


def wait_until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline, "the state was not reached"
        time.sleep(POLL_S)


def configuration(targets: dict[str, list[str]]) -> dict[str, Any]:
    """The committed one, of these hosts, in haste."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], f"{SCRAPE_S}s")
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    assert {job["job_name"] for job in config["scrape_configs"]} == set(targets)
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": targets[job["job_name"]]}]
    return config


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return two_ports()


@pytest.fixture(scope="module")
def server(fake_bundle: Path, metrics_port: int) -> Iterator[str]:
    settings = {
        "RPIAE_BACKEND": "fake",
        "RPIAE_FAKE_STEP_S": "0.02",
        "RPIAE_METRICS_PORT": str(metrics_port),
        "RPIAE_MAX_JOBS_PER_KEY": str(MAX_JOBS),
        "RPIAE_LOG_LEVEL": "error",
    }
    options = ("--processes", "2", "--workers", "2", "--bundle", str(fake_bundle))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        with own_server(*options) as url:
            yield url


@pytest.fixture(scope="module")
def prometheus(
    server: str,
    metrics_port: int,
    require_tool: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    targets = {
        "rpiae-gateway": [server.removeprefix("http://")],
        "rpiae-worker": [f"127.0.0.1:{metrics_port + index}" for index in range(2)],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration(targets)))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        require_tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    ]
    with subprocess.Popen(command) as process:
        asked = Prometheus(f"http://{address}")
        try:
            wait_until(asked.is_ready)
            yield asked
        finally:
            asked.close()
            process.terminate()


@pytest.fixture(scope="module")
def sent(server: str, prometheus: Prometheus) -> Counter[tuple[str, str]]:
    """Counts by task and outcome of 10 requests before Prometheus looked, and 500 afterwards."""
    counts: Counter[tuple[str, str]] = Counter()
    seeds = itertools.count()

    def send(kind: Kind) -> None:
        task, call = kind
        with httpx.Client(base_url=server, timeout=DEADLINE_S) as client:
            counts[task, call(client, next(seeds))] += 1

    for kind in KINDS:
        send(kind)
    # A rate is seen between two scrapes: the series must have been there before.
    seen = sum(counts.values())
    wait_until(lambda: prometheus.value("sum(rpiae_requests_total offset 1s)", time.time()) == seen)
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        for done in [pool.submit(send, kind) for kind in KINDS * NUM_ROUNDS]:
            done.result()
    total = sum(counts.values())
    wait_until(lambda: prometheus.value("sum(rpiae_requests_total)", time.time()) == total)
    return counts


@pytest.fixture(scope="module")
def moment(sent: Counter[tuple[str, str]]) -> float:
    """A time at which Prometheus has scraped everybody and has evaluated every rule."""
    time.sleep(2 * SCRAPE_S)
    return time.time()


def has_data(samples: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(float(sample["value"][1])) for sample in samples)


def test_every_panel_has_data(prometheus: Prometheus, moment: float) -> None:
    panels = [
        panel for path in DASHBOARDS for panel in expressions_of(read_dashboard(path), **VARIABLES)
    ]
    empty = [panel for panel in panels if not has_data(prometheus.query(panel[1], moment))]
    assert empty == []


def test_every_rule_was_recorded(prometheus: Prometheus, moment: float) -> None:
    empty = [name for name, _ in rules() if not has_data(prometheus.query(name, moment))]
    assert empty == []


def test_every_alert_looks_at_data(prometheus: Prometheus, moment: float) -> None:
    observed = [(name, without_threshold(expression)) for name, expression in alerts()]
    empty = [alert for alert in observed if not has_data(prometheus.query(alert[1], moment))]
    assert empty == []


def test_prometheus_counts_what_the_clients_counted(
    prometheus: Prometheus, sent: Counter[tuple[str, str]], moment: float
) -> None:
    assert sum(sent.values()) == len(KINDS) * (NUM_ROUNDS + 1)
    counted = {
        (sample["metric"]["task"], sample["metric"]["outcome"]): float(sample["value"][1])
        for sample in prometheus.query("sum by (task, outcome) (rpiae_requests_total)", moment)
    }
    assert counted == sent
    pictures = prometheus.query("sum by (task) (rpiae_images_total)", moment)
    assert {sample["metric"]["task"]: float(sample["value"][1]) for sample in pictures} == {
        task: count for (task, outcome), count in sent.items() if outcome == "ok"
    }
    assert prometheus.value("max(rpiae_workers)", moment) == 2
    assert prometheus.value('sum(up{job=~"rpiae-.*"})', moment) == 3
    assert prometheus.value("sum(max by (priority) (rpiae_queue_depth))", moment) == 0
