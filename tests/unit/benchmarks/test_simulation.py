"""The simulation against queueing theory, against arithmetic by hand, and against itself."""

import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from benchmarks.simulation.broker import Wake
from benchmarks.simulation.cluster import Cluster, poisson_jobs
from benchmarks.simulation.costs import Costs, Device, GatewayCosts, RedisCosts
from benchmarks.simulation.events import EventLoop, Server
from benchmarks.simulation.readers import PATIENCE_S
from benchmarks.simulation.scaling import Autoscaler, Policy
from benchmarks.simulation.scenarios import Load, deaths, run_load
from benchmarks.simulation.worker import Job

ROOT = Path(__file__).parents[3]
NAMES = tuple(RedisCosts.__dataclass_fields__)
FREE = Costs(
    redis=RedisCosts.from_microseconds(dict.fromkeys(NAMES, 0.0)),
    gateway=GatewayCosts(before=0.0, after=0.0),
    hop_s=0.0,
)
USUAL = Costs(
    redis=RedisCosts.from_microseconds(dict.fromkeys(NAMES, 50.0)),
    gateway=GatewayCosts(before=0.001, after=0.001),
    hop_s=0.0002,
)
ONE_AT_A_TIME = Device(name="one", step_s=((2, 0.1),), max_rows=3)
SHARED = Device(name="shared", step_s=((2, 1.0), (4, 2.0)), max_rows=4)
BATCHING = Device(name="batching", step_s=((1, 0.02), (16, 0.03)), start_s=5.0)


def mean_wait(load: float, service: Callable[[random.Random], float], number: int) -> float:
    """Mean seconds before service at one server, of Poisson arrivals; service has mean 1."""
    loop, server, source = EventLoop(), Server(), random.Random(7)
    waits: list[float] = []

    def arrive(now: float, left: int) -> None:
        waits.append(server.backlog_s(now))
        server.serve(now, service(source))
        if left:
            loop.at(now + source.expovariate(load), arrive, left - 1)

    loop.at(0.0, arrive, number)
    loop.run()
    return statistics.mean(waits)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_a_server_waits_as_queueing_theory_says(load: float) -> None:
    """M/D/1 waits rho / (2 (1 - rho)), M/M/1 twice as long."""
    expected = load / (2 * (1 - load))
    assert mean_wait(load, lambda _: 1.0, 200_000) == pytest.approx(expected, rel=0.05)
    exponential = mean_wait(load, lambda source: source.expovariate(1.0), 200_000)
    assert exponential == pytest.approx(2 * expected, rel=0.06)


def test_a_worker_with_room_for_one_picture_is_such_a_server() -> None:
    cluster = Cluster(FREE, ONE_AT_A_TIME, num_workers=1, progress=False)
    load, service_s = 0.6, 1.0
    cluster.send(poisson_jobs(load / service_s, 20_000, (10,), random.Random(3)))
    cluster.run()
    assert len(cluster.ended) == cluster.num_arrived > 10_000
    latency = statistics.mean(job.ended_at - job.arrived_at for job in cluster.ended)
    expected = service_s * (1 + load / (2 * (1 - load)))
    assert latency == pytest.approx(expected, rel=0.05)
    assert cluster.busy_shares()["workers"] == pytest.approx(load, rel=0.03)


def run_jobs(device: Device, jobs: list[Job], costs: Costs = FREE) -> list[float]:
    """When each of the jobs was answered by one worker."""
    cluster = Cluster(costs, device, num_workers=1, progress=False)
    cluster.send(iter(jobs))
    cluster.run()
    assert len(cluster.ended) == len(jobs)
    return [job.ended_at for job in jobs]


def test_pictures_join_and_leave_between_steps() -> None:
    """Three steps of 1 s alone, then four of 2 s together, then the last three alone again."""
    jobs = [Job(arrived_at=0.0, steps=10), Job(arrived_at=2.5, steps=4)]
    assert run_jobs(SHARED, jobs) == pytest.approx([14.0, 11.0])


def test_a_picture_that_does_not_fit_waits_for_rows() -> None:
    """Both rows' places are taken until the shorter one ends, at 2 * 2 s."""
    jobs = [
        Job(arrived_at=0.0, steps=5),
        Job(arrived_at=0.0, steps=2),
        Job(arrived_at=0.1, steps=1),
    ]
    # The first begins alone; the second joins after its step, at 1 s.
    assert run_jobs(SHARED, jobs) == pytest.approx([8.0, 5.0, 7.0])


def test_prefill_and_decode_take_their_time() -> None:
    device = replace(ONE_AT_A_TIME, prefill_s=0.5, decode_s=0.25, compress_s=0.125)
    (ended_at,) = run_jobs(device, [Job(arrived_at=0.0, steps=3)])
    assert ended_at == pytest.approx(2 * 0.5 + 3 * 0.1 + 0.25 + 0.125)


def test_a_lone_request_takes_what_its_parts_take() -> None:
    device = replace(ONE_AT_A_TIME, react_s=0.003)
    (ended_at,) = run_jobs(device, [Job(arrived_at=1.0, steps=1)], replace(USUAL, client_s=0.01))
    redis_s = USUAL.redis.call + USUAL.redis.per_job
    parts = redis_s + USUAL.gateway.per_request + 8 * USUAL.hop_s + 3 * 0.003 + 0.01
    assert ended_at == pytest.approx(1.1 + parts, abs=2e-4)


def busy_cluster(seed: int = 0) -> Cluster:
    cluster = Cluster(USUAL, BATCHING, num_workers=4, num_gateways=2, seed=seed)
    cluster.send(poisson_jobs(25.0, 120, (10, 25, 50), random.Random(seed)))
    return cluster


def test_every_request_ends_once_though_workers_die() -> None:
    cluster = busy_cluster()
    for at_s, number in ((10.0, 0), (10.1, 1), (40.0, 2)):
        cluster.loop.at(at_s, cluster.kill, cluster.workers[number])
    cluster.run()
    assert cluster.num_arrived > 2500
    assert len(cluster.ended) == cluster.num_arrived == len(set(map(id, cluster.ended)))
    again = [job for job in cluster.ended if job.num_deliveries > 1]
    assert len(again) == cluster.num_redelivered > 2
    # A lease lasts at least two thirds of its time after the death.
    assert all(job.ended_at - job.arrived_at > cluster.lease_s * 2 / 3 for job in again)
    assert cluster.stream_length == 0
    assert cluster.num_alive == 4


def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for seed in (1, 1, 2):
        cluster = busy_cluster(seed)
        cluster.run()
        runs.append([job.ended_at for job in cluster.ended])
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(("wake", "for_nothing"), [("all", 9 * 20), ("one", 0)])
def test_a_job_wakes_one_of_those_who_wait(wake: Wake, for_nothing: int) -> None:
    cluster = Cluster(USUAL, BATCHING, num_workers=10, wake=wake)
    cluster.send(iter([Job(arrived_at=1.0 + second, steps=1) for second in range(20)]))
    cluster.run()
    assert len(cluster.ended) == 20
    assert cluster.broker.num_calls == 20 + for_nothing
    assert cluster.broker.num_empty_takes == 10 + for_nothing  # the first ones found nothing


def test_jobs_go_to_the_workers_with_most_room() -> None:
    cluster = Cluster(USUAL, BATCHING, num_workers=4)
    cluster.send(iter([Job(arrived_at=1.0 + 0.05 * number, steps=500) for number in range(12)]))
    cluster.run(3.0)
    assert [len(worker.held) for worker in cluster.workers] == [3, 3, 3, 3]


def test_what_nobody_is_called_for_is_found_within_half_a_second() -> None:
    """Jobs of the dead: all of them are taken at once when the others, who are idle, look."""
    cluster = Cluster(USUAL, BATCHING, num_workers=5)
    cluster.send(iter([Job(arrived_at=1.0, steps=5) for _ in range(3)]))
    cluster.loop.at(
        1.05, lambda now, _: [cluster.kill(now, w) for w in cluster.workers[:5] if w.held]
    )
    cluster.run()
    assert cluster.num_redelivered == 3
    assert all(job.num_deliveries == 2 for job in cluster.ended)
    assert all(job.ended_at < 1.05 + cluster.lease_s + PATIENCE_S + 0.3 for job in cluster.ended)


def test_redis_saturates_where_its_work_says() -> None:
    """At half the rate that its commands allow it is half busy, at twice that fully."""
    costs = replace(FREE, redis=replace(FREE.redis, put=0.001, take=0.001, finish=0.002))
    device = Device(name="instant", step_s=((1, 1e-6),))
    shares = {}
    for rate in (125.0, 500.0):
        load = Load(device=device, workers=4, per_s=rate, progress=False)
        shares[rate] = run_load(load, costs, 20.0)
    assert shares[125.0]["busy"]["redis"] == pytest.approx(0.5, abs=0.05)
    assert shares[500.0]["busy"]["redis"] == pytest.approx(1.0, abs=0.01)
    assert shares[125.0]["unanswered"] < 5
    assert shares[500.0]["unanswered"] > 0.4 * shares[500.0]["requests"]


def test_shares_of_a_service_are_equal_parts() -> None:
    load = Load(device=BATCHING, workers=8, per_s=40.0, shards=2)
    both = run_load(load, USUAL, 20.0)
    half = run_load(Load(device=BATCHING, workers=4, per_s=20.0), USUAL, 20.0)
    assert both["busy"] == half["busy"]
    assert both["requests"] == 2 * half["requests"]


def test_progress_slows_down_where_redis_is_slow() -> None:
    """Each worker waits for the reply before it publishes again, so Redis is never flooded."""
    costs = replace(FREE, redis=replace(FREE.redis, publish=0.01))
    cluster = Cluster(costs, BATCHING, num_workers=40)
    cluster.send(poisson_jobs(40.0, 30, (50,), random.Random(1)))
    cluster.run(30.0)
    assert cluster.broker.redis.backlog_s(30.0) <= 40 * 0.01
    assert cluster.housekeeping.redis_s["progress"] <= 30.0


def steady(rate: float, seconds: float) -> Iterator[Job]:
    return poisson_jobs(rate, seconds, (50,), random.Random(5))


def test_the_autoscaler_keeps_its_limits() -> None:
    policy = Policy(max_workers=5)
    cluster = Cluster(USUAL, BATCHING, num_workers=1)
    scaler = Autoscaler(cluster, policy)
    cluster.send(steady(100.0, 200))
    cluster.run(1500.0)
    numbers = [number for _, number in scaler.history]
    assert max(numbers) == 5
    ups = [(at, n) for at, n in scaler.history if at < 200]
    assert [n for _, n in ups] == [1, 3, 5]
    assert ups[2][0] - ups[1][0] >= policy.up_period_s
    downs = [at for at, _ in scaler.history[len(ups) :]]
    assert [n for _, n in scaler.history[len(ups) :]] == [4, 3, 2, 1][: len(downs)]
    assert len(downs) >= 2
    assert downs[0] >= 200 + policy.down_stable_s
    assert all(b - a >= policy.down_period_s for a, b in pairwise(downs))
    assert cluster.num_alive == numbers[-1]
    assert len(cluster.ended) == cluster.num_arrived


def test_the_autoscaler_is_the_deployed_one() -> None:
    text = (ROOT / "deploy" / "k8s" / "autoscaling" / "scaledobject.yaml").read_text("utf-8")
    scaled = next(yaml.safe_load_all(text))["spec"]
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    (up,), (down,) = (behavior[way]["policies"] for way in ("scaleUp", "scaleDown"))
    assert (up["type"], down["type"], down["value"]) == ("Pods", "Pods", 1)
    assert Policy() == Policy(
        jobs_per_worker=int(scaled["triggers"][0]["metadata"]["streamLength"]),
        min_workers=scaled["minReplicaCount"],
        max_workers=scaled["maxReplicaCount"],
        up_workers=up["value"],
        up_period_s=up["periodSeconds"],
        down_period_s=down["periodSeconds"],
        down_stable_s=behavior["scaleDown"]["stabilizationWindowSeconds"],
    )


def test_a_worker_that_drains_finishes_what_it_has() -> None:
    cluster = Cluster(USUAL, BATCHING, num_workers=2)
    cluster.send(steady(20.0, 20))
    leaving = cluster.workers[0]
    held: list[int] = []

    def drain(now: float, _: None) -> None:
        held.append(len(leaving.held))
        cluster.drain(now, leaving)

    cluster.loop.at(10.0, drain)
    cluster.run()
    assert held[0] > 0
    assert not leaving.alive
    assert cluster.num_redelivered == 0
    assert len(cluster.ended) == cluster.num_arrived


def test_steps_between_measured_sizes_are_in_proportion() -> None:
    device = Device(name="x", step_s=((2, 1.0), (4, 3.0)), max_rows=8)
    assert device.table[:5] == (1.0, 1.0, 1.0, 2.0, 3.0)
    assert device.table[8] == 6.0
    assert device.pictures_per_s((10,)) == pytest.approx(4 / 60)


def test_bad_costs_and_devices() -> None:
    with pytest.raises(ValueError, match=r"expected the costs .*'put'.* got \['put'\]"):
        RedisCosts.from_microseconds({"put": 1.0})
    with pytest.raises(ValueError, match="step_s of x must be ascending"):
        Device(name="x", step_s=((4, 1.0), (2, 1.0)))
    with pytest.raises(ValueError, match="max_rows must fit one guided edit"):
        Device(name="x", step_s=((1, 1.0),), max_rows=2)


def test_deaths_lose_nothing() -> None:
    found = deaths(USUAL, workers=10, killed=2)
    assert found["answered"] == found["requests"] > 0
    assert found["redelivered"] > 0
    assert found["periods"]["before"]["requests"] > 0
