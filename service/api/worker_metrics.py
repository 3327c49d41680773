"""Metrics of workers on this machine that nobody else scrapes, shown among the gateway's own.

A worker on a free port announces where it exports; one on a configured port is Prometheus' own
target, announces nothing, and so is never counted twice. Each worker's series carry its name: a sum
over workers would fall when one ends, which Prometheus takes for counters that began anew.
"""

import asyncio
import socket
from collections.abc import Iterable, Mapping
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
    "rpiae_redis_memory_bytes",
    "rpiae_redis_memory_limit_bytes",
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
) -> dict[str, str]:
    """Expositions, by name, of the workers that announced an address on this machine.

    A worker that does not answer is left out: it may just be leaving.
    """
    host = socket.gethostname()
    names: dict[str, str] = {}  # by address: a process that swaps its model has two for a while
    for name, info in workers.items():
        address = str(info.get("metrics_url") or "")
        if info.get("host") == host and address.startswith(_LOCAL):
            names[address] = max(name, names.get(address, name))
    texts = await asyncio.gather(*(_scrape(client, address) for address in names))
    return {name: text for name, text in zip(names.values(), texts, strict=True) if text}


def merge_families(own: Iterable[Metric], scraped: Mapping[str, str]) -> Families:
    """The gateway's families, those of the model's work replaced by the workers', each labelled."""
    families = {family.name: family for family in own}
    replaced = set()
    for worker, text in scraped.items():
        for family in text_string_to_metric_families(text):
            name = family.name
            if not _of_worker(name):
                continue
            if name not in replaced:
                families[name] = Metric(name, family.documentation, family.type)
                replaced.add(name)
            for sample in family.samples:
                labels = {"worker": worker, **sample.labels}
                families[name].add_sample(sample.name, labels, sample.value)
    return Families(families.values())


def _of_worker(name: str) -> bool:
    # The times at which series were created are families of their own.
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
