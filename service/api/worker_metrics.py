"""Metrics of workers on this machine that nobody else scrapes, shown among the gateway's own.

A worker on a free port announces where it exports; one on a configured port is Prometheus' own
target, announces nothing, and so is never counted twice.
"""

import asyncio
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.log import get_logger

_LOCAL = "http://127.0.0.1:"
_PREFIX = "rpiae_"
# Every process has these at zero; only the gateway knows them.
_GATEWAY_FAMILIES = (
    "rpiae_requests",
    "rpiae_request_seconds",
    "rpiae_queue_depth",
    "rpiae_queue_oldest_seconds",
    "rpiae_workers",
    "rpiae_model_info",
)


class Families:
    """What `generate_latest` takes: something that collects metric families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


async def scrape_workers(
    client: httpx.AsyncClient, workers: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Expositions of the workers that announced an address on this machine.

    A worker that does not answer is left out: it may just be leaving.
    """
    host = socket.gethostname()
    neighbours = [info for info in workers.values() if info.get("host") == host]
    addresses = [str(info.get("metrics_url") or "") for info in neighbours]
    texts = await asyncio.gather(
        *(_scrape(client, address) for address in addresses if address.startswith(_LOCAL))
    )
    return [text for text in texts if text]


def merge_families(own: Iterable[Metric], scraped: Sequence[str]) -> Families:
    """The gateway's families, those of the model's work replaced by the workers' sums."""
    families = {family.name: family for family in own}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in scraped:
        for family in text_string_to_metric_families(text):
            if not _of_worker(family.name):
                continue
            if family.name not in sums:
                families[family.name] = Metric(family.name, family.documentation, family.type)
            values = sums.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sample.labels.items()))
                values[key] = values.get(key, 0.0) + sample.value
    for name, values in sums.items():
        for (sample_name, labels), value in values.items():
            families[name].add_sample(sample_name, dict(labels), value)
    return Families(families.values())


def _of_worker(name: str) -> bool:
    # The times at which series were created, which a sum would spoil, are families of their own.
    return (
        name.startswith(_PREFIX) and name not in _GATEWAY_FAMILIES and not name.endswith("_created")
    )


async def _scrape(client: httpx.AsyncClient, address: str) -> str:
    try:
        answer = await client.get(address)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        get_logger(__name__).warning("worker metrics not read", address=address, error=str(error))
        return ""
    return answer.text
