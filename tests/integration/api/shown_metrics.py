"""What a gateway shows under /metrics."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families


def samples(gateway: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of /metrics by name and labels."""
    answer = gateway.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(gateway: Any, name: str, /, **labels: str) -> float:
    """One sample of /metrics; 0 if it is not there."""
    return samples(gateway).get((name, frozenset(labels.items())), 0.0)
