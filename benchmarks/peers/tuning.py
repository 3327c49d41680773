"""Settings of each server: those that it runs with, and the ones that were tried.

A batch of 8 pictures with guidance has the 16 model rows that a device holds. A larger one is run
in parts, all answered at the end of the last; `by_steps` says how the parts are made.
"""

from itertools import product
from typing import Any, Literal, TypeAlias

Device: TypeAlias = Literal["cpu", "emulated", "null"]

TUNED: dict[str, dict[str, Any]] = {
    "fastapi-lock": {},
    "fastapi-pool": {"threads": 4},
    "litserve": {"max_batch_size": 8, "batch_timeout_s": 0.001, "fast_queue": True},
    "bentoml": {"max_batch_size": 8, "max_latency_ms": 600_000},
    "ray-serve": {"max_batch_size": 16, "batch_wait_timeout_s": 1.0},
}
# A wait that is as long as a batch on the emulated device is no good where batches are shorter.
_ON_DEVICE: dict[tuple[str, Device], dict[str, Any]] = {
    ("ray-serve", "cpu"): {"max_batch_size": 8, "batch_wait_timeout_s": 0.01},
    ("ray-serve", "null"): {"batch_wait_timeout_s": 0.0},
}


def tuned(server: str, device: Device) -> dict[str, Any]:
    """What a server runs with on a device."""
    return TUNED[server] | _ON_DEVICE.get((server, device), {})


def trials(server: str) -> list[dict[str, Any]]:
    """What is tried for a server; its own settings where there is nothing to choose."""
    match server:
        case "fastapi-pool":
            return [{"threads": threads} for threads in (4, 16, 40)]
        case "litserve":
            tried = [*product((8, 16), (0.001, 0.01, 0.05)), (4, 0.01)]
            return [
                *(
                    {"max_batch_size": size, "batch_timeout_s": wait, "fast_queue": True}
                    for size, wait in tried
                ),
                {"max_batch_size": 8, "batch_timeout_s": 0.01, "fast_queue": False},
            ]
        case "bentoml":
            # A shorter latency makes it refuse what it believes it cannot answer in time.
            return [{"max_batch_size": size, "max_latency_ms": 600_000} for size in (4, 8, 16)]
        case "ray-serve":
            # It forms the next batch, of what comes within the wait, while the last one runs.
            waits = product((8, 16), (0.01, 0.1, 0.3, 1.0))
            return [{"max_batch_size": size, "batch_wait_timeout_s": wait} for size, wait in waits]
        case _:
            return [TUNED[server]]


def beyond(server: str) -> list[dict[str, Any]]:
    """What is tried but not chosen from: the pipeline sorts requests, as a scheduler does."""
    others: dict[str, dict[str, Any]] = {
        "litserve": {"batch_timeout_s": 0.01, "fast_queue": True},
        "bentoml": {"max_latency_ms": 600_000},
        "ray-serve": {"batch_wait_timeout_s": 1.0},
    }
    if server not in others:
        return []
    return [{"max_batch_size": 32, **others[server], "by_steps": True}]
