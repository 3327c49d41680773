"""The simulation beside the real service: the same requests, at the same moments.

The service is one gateway and one or two workers on an emulated device. The simulation gets what
`calibrate` found out about it, and nothing from the runs that it is compared with.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving_load import (
    GENERATE_ONLY,
    LoadClient,
    Planned,
    percentile,
    plan_requests,
    poisson_arrivals,
)
from benchmarks.serving_processes import QUEUE, Cores, RunningService, running_service
from benchmarks.simulation.calibration import calibrate
from benchmarks.simulation.cluster import Cluster
from benchmarks.simulation.costs import Costs, Device, RedisCosts
from benchmarks.simulation.worker import Job
from models.manifest import Manifest, read_manifest
from service.jobs.connection import connect
from service.jobs.queue import JobQueue

STEPS = (10, 25, 50)
LOADS = (0.5, 0.8, 0.95)
WORKERS = (1, 2)
STEP_S, ROW_S = 0.02, 0.0002
MAX_ROWS = 16
SIZES = (1, 2, 4, 8)
SHARES = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}
PROGRAM = (
    *("-m", "benchmarks.serving_worker", "--policy", "continuous"),
    *("--step-s", str(STEP_S), "--row-s", str(ROW_S)),
)


def percentiles(latencies: Sequence[float]) -> dict[str, float]:
    """The three that are compared."""
    return {name: percentile(latencies, share) for name, share in SHARES.items()}


def device_of(calibration: Mapping[str, Any]) -> Device:
    """What the calibration found as the simulation's device."""
    return Device(
        name="emulated",
        step_s=tuple((rows, seconds) for rows, seconds in calibration["ticks"]),
        max_rows=MAX_ROWS,
        react_s=calibration["react_s"],
    )


def simulate_plan(
    plan: Sequence[Planned], costs: Costs, device: Device, num_workers: int
) -> list[float]:
    """Latencies of planned requests, seconds."""
    cluster = Cluster(costs, device, num_workers=num_workers)
    cluster.send(Job(arrived_at=planned.at_s, steps=planned.steps) for planned in plan)
    cluster.run()
    return [job.ended_at - job.arrived_at for job in cluster.ended]


async def _until_all_work(service: RunningService, num_workers: int) -> None:
    redis = connect(service.redis_url)
    queue = JobQueue(redis, name=QUEUE)
    async with asyncio.timeout(120):
        while len(await queue.workers()) < num_workers:
            await asyncio.sleep(0.1)
    await redis.aclose()


async def _replay(
    service: RunningService, manifest: Manifest, plan: Sequence[Planned]
) -> list[float]:
    async with LoadClient(service.url, manifest) as client:
        samples = await client.replay(plan)
    if failed := sum(sample.status != 200 for sample in samples):
        raise RuntimeError(f"{failed} of {len(samples)} requests failed: they say nothing")
    return [sample.latency_s for sample in samples]


def validate(
    bundle: Path, redis_us: Mapping[str, float], gateway_s: Mapping[str, float], seconds: float
) -> dict[str, Any]:
    """Calibrate on one worker, then compare at each load and number of workers.

    Args:
        bundle: only its shapes matter.
        redis_us: microseconds of Redis by command.
        gateway_s: `end` and `list_worker` of a gateway.
        seconds: of arrivals in each run.
    """
    manifest, cores = read_manifest(bundle), Cores.split()
    runs: list[dict[str, Any]] = []
    calibration: dict[str, Any] = {}
    for num_workers in WORKERS:
        with running_service(
            bundle, cores, worker_program=PROGRAM, num_workers=num_workers, max_rows=MAX_ROWS
        ) as service:
            asyncio.run(_until_all_work(service, num_workers))
            if not calibration:
                redis = RedisCosts.from_microseconds(redis_us)
                calibration = asyncio.run(calibrate(service, redis, SIZES, rounds=3, requests=400))
                calibration["gateway"] |= gateway_s
            costs, device = Costs.from_report(redis_us, calibration), device_of(calibration)
            capacity = num_workers * device.pictures_per_s(STEPS)
            for load in LOADS:
                source = random.Random(round(100 * load) + num_workers)
                times = poisson_arrivals(load * capacity, seconds, source)
                plan = plan_requests(times, STEPS, GENERATE_ONLY, source)
                real = percentiles(asyncio.run(_replay(service, manifest, plan)))
                simulated = percentiles(simulate_plan(plan, costs, device, num_workers))
                runs.append(
                    {
                        "workers": num_workers,
                        "load": load,
                        "per_s": load * capacity,
                        "requests": len(plan),
                        "real": real,
                        "simulated": simulated,
                    }
                )
                print(runs[-1], flush=True)
    return {"calibration": calibration, "seconds": seconds, "steps": STEPS, "runs": runs}
