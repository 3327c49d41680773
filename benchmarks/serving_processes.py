"""A service for a benchmark: Redis, gateway and worker as processes of their own, on given cores.

The worker gets one core with one thread; the gateway, Redis and the load generator share the
others. So the model's speed does not depend on what the clients do.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving import wait_until_ready
from service.jobs.embedded import EmbeddedRedis, bound_to_parent

STOP_DEADLINE_S = 60
QUEUE = "benchmark"


@dataclass(frozen=True)
class Cores:
    """Who runs where; the same cores twice on a machine that has only one."""

    worker: frozenset[int]
    others: frozenset[int]

    @classmethod
    def split(cls) -> "Cores":
        """The last usable core for the worker, the rest for all others."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(frozenset(usable[-1:]), frozenset(usable[:-1] or usable))

    def describe(self) -> str:
        """One sentence for the report."""
        if self.worker & self.others:
            return "worker, gateway, Redis and load generator share the only core"
        return (
            f"worker: 1 thread on a core of its own; gateway, Redis and load generator on "
            f"{len(self.others)} other{'s' if len(self.others) > 1 else ''}"
        )


@dataclass(frozen=True)
class RunningService:
    """Addresses of a service that answers, and its processes' ids by name."""

    url: str
    redis_url: str
    pids: Mapping[str, int]


@contextmanager
def running_service(
    bundle: Path,
    cores: Cores,
    *,
    worker_program: Sequence[str] = ("-m", "service.cli", "worker"),
    num_workers: int = 1,
    **settings: Any,
) -> Iterator[RunningService]:
    """A service that is ready for requests, for as long as the context lasts.

    This process moves to the cores of the others and stays there.

    Args:
        bundle: what it serves.
        cores: where.
        worker_program: arguments of the interpreter that start a worker.
        num_workers: all on the worker's cores; `pids` has the last one.
        settings: of gateway and worker, by their names.

    Raises:
        RuntimeError: a process ended before the service was ready, or was not ready in time.
    """
    os.sched_setaffinity(0, cores.others)
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis())
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": "1",
            **{
                f"RPIAE_{name.upper()}": str(value)
                for name, value in {
                    "redis_url": redis.url,
                    "bundle": bundle.resolve(),
                    "queue_name": QUEUE,
                    "threads": 1,
                    "port": 0,
                    "max_waiting": 100_000,
                    "request_timeout_s": 600,
                    "log_level": "warning",
                    **settings,
                }.items()
            },
        }
        for _ in range(num_workers):
            worker = stack.enter_context(_process(worker_program, environment))
            os.sched_setaffinity(worker.pid, cores.worker)
        gateway = stack.enter_context(_process(("-m", "service.cli", "gateway"), environment))
        assert gateway.stdout is not None
        url = gateway.stdout.readline().decode().strip()
        wait_until_ready(url, worker)
        assert redis.pid is not None
        pids = {"gateway": gateway.pid, "worker": worker.pid, "redis": redis.pid}
        yield RunningService(url, redis.url, pids)


@contextmanager
def _process(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        bound_to_parent([sys.executable, *arguments]),
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(STOP_DEADLINE_S)
