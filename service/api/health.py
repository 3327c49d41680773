"""Whether the gateway lives, whether it can serve, and what Prometheus reads."""

import asyncio
import math
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from service import shared_metrics
from service.api.state import Gateway, GatewayDep
from service.api.worker_metrics import merge_families, scrape_workers
from service.errors import QueueUnavailable
from service.jobs.job import PRIORITIES
from service.metrics import (
    QUEUE_DEPTH,
    QUEUE_OLDEST_SECONDS,
    REDIS_MEMORY_BYTES,
    REDIS_MEMORY_LIMIT_BYTES,
    WORKERS,
)

router = APIRouter(tags=["operation"])

# A hung Redis must not hang the probes, whose own patience is often a second.
_PATIENCE_S = 0.8


@router.get("/healthz")
async def check_alive() -> dict[str, str]:
    """200 while the process answers; for liveness probes."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "`reason` says what is missing."}})
async def check_ready(gateway: GatewayDep) -> Response:
    """200 when Redis answers, a worker has the model loaded, and this gateway stays.

    Where requests wait for a worker (RPIAE_WAIT_FOR_WORKER_S), none is needed to be ready.
    """
    model = gateway.manifest.name
    if gateway.draining.is_set():
        return _not_ready("the gateway is shutting down")
    try:
        async with asyncio.timeout(_PATIENCE_S):
            workers = await gateway.serving_workers()
    except (QueueUnavailable, TimeoutError):
        return _not_ready("Redis does not answer")
    if not workers and not gateway.settings.wait_for_worker_s:
        return _not_ready(f"no live worker serves {model}")
    return JSONResponse({"status": "ready", "model": model, "workers": len(workers)})


@router.get("/metrics", response_class=Response)
async def show_metrics(gateway: GatewayDep) -> Response:
    """Metrics of the gateways on this port and of this machine's workers; the queue's, of now."""
    workers = await _read_queue_gauges(gateway)
    scraped = await scrape_workers(gateway.local_http, workers)
    families = merge_families(shared_metrics.collect(), scraped)
    return Response(generate_latest(families), headers={"content-type": CONTENT_TYPE_LATEST})


def _not_ready(reason: str) -> Response:
    return JSONResponse({"status": "not ready", "reason": reason}, 503)


async def _read_queue_gauges(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """Set the gauges and return the live workers.

    While Redis is away the gauges are NaN: the last known numbers would look alive.
    """
    try:
        async with asyncio.timeout(_PATIENCE_S):
            depths = await gateway.queue.depth()
            workers = await gateway.serving_workers()
            memory = await gateway.redis_memory()
    except (QueueUnavailable, TimeoutError):
        for priority in PRIORITIES:
            QUEUE_DEPTH.labels(priority).set(math.nan)
            QUEUE_OLDEST_SECONDS.labels(priority).set(math.nan)
        for gauge in (WORKERS, REDIS_MEMORY_BYTES, REDIS_MEMORY_LIMIT_BYTES):
            gauge.set(math.nan)
        return {}
    for priority, depth in depths.items():
        QUEUE_DEPTH.labels(priority).set(depth.waiting)
        QUEUE_OLDEST_SECONDS.labels(priority).set(depth.oldest_s)
    WORKERS.set(len(workers))
    REDIS_MEMORY_BYTES.set(memory.used_bytes)
    REDIS_MEMORY_LIMIT_BYTES.set(memory.limit_bytes)
    return workers
