"""The serving benchmarks' own services and clients, at a size of seconds."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import serving_efficiency
from benchmarks.serving_load import MIXED_TASKS, LoadClient, plan_requests
from benchmarks.serving_processes import Cores, running_service
from benchmarks.serving_soak import resident_bytes
from models.manifest import read_manifest


@pytest.fixture(autouse=True)
def cores() -> Iterator[Cores]:
    """Where this process may run, put back after a benchmark moved it."""
    usable = os.sched_getaffinity(0)
    yield Cores.split()
    os.sched_setaffinity(0, usable)


@pytest.mark.parametrize("policy", ["continuous", "request-level"])
async def test_a_plan_is_replayed_on_a_service_of_each_policy(
    policy: str, fake_bundle: Path, cores: Cores
) -> None:
    program = (
        *("-m", "benchmarks.serving_worker", "--policy", policy),
        *("--step-s", "0.001", "--row-s", "0.0001"),
    )
    source = random.Random(1)
    plan = plan_requests([0.005 * i for i in range(80)], (2, 5), MIXED_TASKS, source)
    assert {one.task for one in plan} == set(MIXED_TASKS)
    with running_service(fake_bundle, cores, worker_program=program, max_rows=8) as service:
        assert os.sched_getaffinity(service.pids["worker"]) == cores.worker
        assert os.sched_getaffinity(service.pids["gateway"]) == cores.others
        assert all(resident_bytes(pid) > 2**20 for pid in service.pids.values())
        async with LoadClient(service.url, read_manifest(fake_bundle)) as client:
            samples = await client.replay(plan)
            assert await client.saturate(plan[:4], at_a_time=2) > 0
    assert [sample.planned for sample in samples] == plan
    assert {sample.status for sample in samples} == {200}
    assert all(sample.latency_s > sample.late_s >= 0 for sample in samples)


def test_the_offline_loop_makes_every_picture(tiny_bundle: Path) -> None:
    serving_efficiency._load_engine(tiny_bundle, frozenset(os.sched_getaffinity(0)), "torch")
    plan = plan_requests([0.0] * 5, (2, 5), {"generate": 1.0}, random.Random(1))
    started = time.perf_counter()
    assert 0 < serving_efficiency._run_engine(plan) <= time.perf_counter() - started
