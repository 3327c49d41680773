"""What is simulated: growing services, what would relieve them, deaths, and autoscaling."""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.serving_load import percentile
from benchmarks.simulation.broker import Wake
from benchmarks.simulation.cluster import LEASE_S, Cluster, poisson_jobs, run_timed
from benchmarks.simulation.costs import Costs, Device
from benchmarks.simulation.scaling import Autoscaler, Policy
from benchmarks.simulation.worker import Job

STEPS = (10, 25, 50)
FAST = Device(name="fast", step_s=((1, 0.0202), (16, 0.0232)))
LARGE = Device(name="large", step_s=((1, 0.23), (16, 0.68)))
HOP_S = 0.00025  # one way between two machines of a data centre: assumed
BUSY = 0.7  # a server that is busier than this is to be shared out
GATEWAY_SHARE = 0.5  # gateways are so many that each is about so busy
MILLION_PER_HOUR = 1e6 / 3600
_MOST_REQUESTS = 1e6  # of one run
_WARM_UP = 0.1  # of the time: requests that do not count


@dataclass(frozen=True, kw_only=True)
class Load:
    """One service under load: requests per second of all `shards` together."""

    device: Device
    workers: int
    per_s: float
    shards: int = 1
    wake: Wake = "one"
    progress: bool = True


def gateways_for(per_s: float, costs: Costs) -> int:
    """How many gateway processes so many requests per second need."""
    return max(1, math.ceil(per_s * costs.gateway.per_request / GATEWAY_SHARE))


def in_data_centre(costs: Costs) -> Costs:
    """The measured costs with a network between the machines."""
    return replace(costs, hop_s=max(costs.hop_s, HOP_S))


def summary(jobs: Sequence[Job]) -> dict[str, float]:
    """Of answered jobs: seconds in all and in the queue."""
    latencies = [job.ended_at - job.arrived_at for job in jobs]
    waits = [job.taken_at - job.arrived_at for job in jobs]
    return {
        "p50_s": percentile(latencies, 0.5),
        "p99_s": percentile(latencies, 0.99),
        "wait_p50_s": percentile(waits, 0.5),
        "wait_p99_s": percentile(waits, 0.99),
    }


def run_load(load: Load, costs: Costs, seconds: float, seed: int = 1) -> dict[str, Any]:
    """Simulate one of the equal shards: its share of workers, gateways and requests.

    seconds: of arrivals; fewer where they would be more than a million requests.
    """
    per_s = load.per_s / load.shards
    seconds = min(seconds, _MOST_REQUESTS / per_s)
    num_gateways = gateways_for(per_s, costs)
    cluster = Cluster(
        costs,
        load.device,
        num_workers=load.workers // load.shards,
        num_gateways=num_gateways,
        seed=seed,
        wake=load.wake,
        progress=load.progress,
    )
    cluster.send(poisson_jobs(per_s, seconds, STEPS, random.Random(seed)))
    timed = run_timed(cluster, until=seconds)
    shares, broker = cluster.busy_shares(), cluster.broker
    calls_s = broker.num_calls * costs.redis.call + broker.num_empty_takes * costs.redis.take_empty
    counted = [job for job in cluster.ended if job.arrived_at >= _WARM_UP * seconds]
    unanswered = cluster.num_arrived - len(cluster.ended)
    return {
        **asdict(load),
        "device": load.device.name,
        "gateways": num_gateways * load.shards,
        "seconds": seconds,
        "requests": cluster.num_arrived * load.shards,
        **summary(counted),
        "busy": shares,
        "redis_s": {
            name: spent / cluster.loop.now for name, spent in cluster.housekeeping.redis_s.items()
        }
        | {
            "calls": calls_s / cluster.loop.now,
            "jobs": len(cluster.ended) * costs.redis.per_job / cluster.loop.now,
        },
        "unanswered": unanswered * load.shards,
        **timed,
    }


def growth(costs: Costs, seconds: float, share: float = 0.8) -> list[dict[str, Any]]:
    """More and more workers at 80 % of what they bear; where Redis is too busy, also shared out."""
    loads = [
        Load(device=FAST, workers=n, per_s=share * n * FAST.pictures_per_s(STEPS))
        for n in (1, 10, 30, 100, 300)
    ]
    loads += [
        Load(device=LARGE, workers=n, per_s=share * n * LARGE.pictures_per_s(STEPS))
        for n in (10, 100, 300)
    ]
    loads.append(Load(device=LARGE, workers=1000, per_s=MILLION_PER_HOUR))
    rows = []
    for load in loads:
        row = run_load(load, costs, seconds)
        rows.append(row)
        while row["busy"]["redis"] > BUSY and 4 * load.shards <= load.workers:
            load = replace(load, shards=2 * load.shards)
            row = run_load(load, costs, seconds)
        if load.shards > 1:
            rows.append(row)
    return rows


def relief(costs: Costs, seconds: float) -> list[dict[str, Any]]:
    """A thousand workers and a million requests an hour: what takes work from Redis."""
    today = Load(device=LARGE, workers=1000, per_s=MILLION_PER_HOUR)
    loads = {
        "as it is": today,
        "no progress published": replace(today, progress=False),
        "a job wakes all idle workers, as it once was": replace(today, wake="all"),
    }
    return [{"change": name, **run_load(load, costs, seconds)} for name, load in loads.items()]


def deaths(costs: Costs, *, workers: int = 100, killed: int = 10) -> dict[str, Any]:
    """A tenth of the workers dies at once under 70 % load and comes back after its start."""
    per_s = 0.7 * workers * LARGE.pictures_per_s(STEPS)
    cluster = Cluster(
        costs, LARGE, num_workers=workers, num_gateways=gateways_for(per_s, costs), seed=2
    )
    at_s, until_s = 300.0, 900.0
    cluster.send(poisson_jobs(per_s, until_s, STEPS, random.Random(2)))
    for worker in cluster.workers[:killed]:
        cluster.loop.at(at_s, cluster.kill, worker)
    cluster.run()
    periods = {
        "before": [j for j in cluster.ended if 60 <= j.arrived_at < at_s - 60],
        "in the minute around it": [
            j for j in cluster.ended if at_s - 30 <= j.arrived_at < at_s + 30
        ],
        "of it, jobs of the dead": [j for j in cluster.ended if j.num_deliveries > 1],
        "five minutes later": [j for j in cluster.ended if j.arrived_at >= at_s + 300],
    }
    return {
        "workers": workers,
        "killed": killed,
        "lease_s": LEASE_S,
        "start_s": LARGE.start_s,
        "per_s": per_s,
        "requests": cluster.num_arrived,
        "answered": len(cluster.ended),
        "redelivered": cluster.num_redelivered,
        "periods": {
            name: {"requests": len(jobs), **summary(jobs)} for name, jobs in periods.items()
        },
    }


def rush(costs: Costs, policies: dict[str, Policy]) -> list[dict[str, Any]]:
    """From 3 to 60 requests per second for 20 minutes, with one worker at first."""
    low, high, from_s, to_s, end_s = 3.0, 60.0, 300.0, 1500.0, 3600.0

    def per_s(at_s: float) -> float:
        return high if from_s <= at_s < to_s else low

    rows = []
    for name, policy in policies.items():
        cluster = Cluster(costs, FAST, num_workers=1, seed=3)
        scaler = Autoscaler(cluster, policy)
        cluster.send(poisson_jobs(per_s, end_s, STEPS, random.Random(3)))
        cluster.run(end_s)
        late = [job.arrived_at for job in cluster.ended if job.taken_at - job.arrived_at > 1.0]
        hours = sum(
            number * (until - since)
            for (since, number), until in zip(
                scaler.history, [at for at, _ in scaler.history[1:]] + [end_s], strict=True
            )
        )
        rows.append(
            {
                "policy": name,
                **asdict(policy),
                "most_workers": max(number for _, number in scaler.history),
                "most_waiting": cluster.broker.most_waiting,
                "late_s": max(late) - from_s if late else 0.0,
                "worker_hours": hours / 3600,
                "history": scaler.history,
                **summary([j for j in cluster.ended if from_s <= j.arrived_at < to_s]),
            }
        )
    return rows
