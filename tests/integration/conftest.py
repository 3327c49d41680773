"""A bundle without weights, jobs for it, and worker processes that run it on the fake backend."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from models.manifest import Manifest, write_manifest
from service.jobs.connection import connect
from service.jobs.job import GenerateParams, Job
from service.jobs.queue import JobQueue

DEADLINE_S = 40
FAKE_MODEL = "fake-model"


class WorkerProcess:
    """`rpiae worker` in a process of its own; its log lines are kept."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "worker"],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        self._log = self._process.stderr
        self.last_line = ""

    def await_line(self, event: str) -> dict[str, Any]:
        """The next log line with that event; the test's own timeout bounds the wait."""
        for line in self._log:
            if line.startswith(b"{") and (fields := json.loads(line))["event"] == event:
                return dict(fields)
        raise AssertionError(f"the worker ended without the line {event!r}")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Exit status; reads the log to its end, so that a full pipe holds nothing up."""
        for line in self._log:
            self.last_line = line.decode().strip()
        return self._process.wait(DEADLINE_S)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@pytest.fixture(scope="session")
def fake_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest: all that the fake backend reads of a bundle."""
    directory = tmp_path_factory.mktemp("fake-bundle")
    manifest = Manifest(
        name=FAKE_MODEL,
        tasks=["generate", "edit", "variation", "encode", "decode"],
        image_size=(16, 16),
        latent_shape=(4, 2, 2),
        latents_mean=[0.0],
        latents_std=[1.0],
        timestep_shift=1.0,
    )
    write_manifest(directory, manifest)
    return directory


@pytest.fixture
def start_worker(
    fake_bundle: Path, redis_url: str, queue_name: str
) -> Iterator[Callable[..., WorkerProcess]]:
    """Function that starts a worker on the test's queue, with settings by their names."""
    with ExitStack() as stack:

        def start(**settings: Any) -> WorkerProcess:
            defaults = {
                "redis_url": redis_url,
                "bundle": fake_bundle,
                "queue_name": queue_name,
                "backend": "fake",
                "lease_s": 1,
            }
            environment = {
                f"RPIAE_{name.upper()}": str(value) for name, value in (defaults | settings).items()
            }
            worker = WorkerProcess(environment)
            stack.callback(worker.close)
            return worker

        yield start


@pytest.fixture
def make_picture_job() -> Callable[..., Job]:
    """Jobs for the fake model, each with its own seed; `params` are fields of GenerateParams."""
    seeds = itertools.count()

    def make(*, priority: str = "interactive", **params: Any) -> Job:
        fields = {"prompt": "a red circle", "seed": next(seeds), "steps": 4, "guidance_scale": 2.0}
        return Job(
            id=uuid.uuid4().hex,
            task="generate",
            model=FAKE_MODEL,
            params=GenerateParams(**(fields | params)),
            priority=priority,  # type: ignore[arg-type]
            created_at=time.time(),
        )

    return make


@pytest_asyncio.fixture
async def worker_queue(redis_url: str, queue_name: str) -> AsyncIterator[JobQueue]:
    """The queue from the gateway's side, with a lease of a second like the workers'."""
    redis = connect(redis_url)
    queue = JobQueue(redis, name=queue_name, lease_s=1)
    await queue.open()
    yield queue
    await queue.close()
    await redis.aclose()
