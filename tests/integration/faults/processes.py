"""A Redis, gateways and workers of one queue, each a process of its own that may be killed."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import redis

from service.jobs.connection import connect
from service.jobs.embedded import bound_to_parent
from service.jobs.queue import JobQueue
from service.tasks import end_tasks

START_DEADLINE_S = 40
STOP_DEADLINE_S = 20
_POLL_S = 0.02
_LOG_TAIL_CHARS = 3000


class Process:
    """A running program that ends with this test at the latest; its log goes into a file.

    Args:
        name: for the log.
        command: an absolute path first.
        log: where standard error goes; standard output is a pipe.
        environment: variables beside those of this process.
        max_file_bytes: no file of the process grows beyond it; writing fails like on a full disk.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: dict[str, str] | None = None,
        max_file_bytes: int | None = None,
    ) -> None:
        self.name, self.log = name, log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                bound_to_parent(command),
                env={**os.environ, **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=errors,
                # Python ignores SIGXFSZ; handed down, a write beyond the limit fails, not kills.
                restore_signals=max_file_bytes is None,
            )
        self.pid = self._process.pid
        if max_file_bytes is not None:
            self.limit_files(max_file_bytes)

    def limit_files(self, max_bytes: int) -> None:
        """Let no file grow further than this from now on; -1 lifts the limit."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (max_bytes, resource.RLIM_INFINITY))

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def first_line(self) -> str:
        """What it writes first on standard output; empty when it ends without a word."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Exit status."""
        return self._process.wait(STOP_DEADLINE_S)

    def close(self) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Service:
    """Starts the parts; `close` ends whatever is left of them.

    Args:
        folder: for the socket, Redis' files and the logs; a short path.
        bundle: what gateways and workers serve.
        redis_program: which server.
        settings: of every gateway and worker, by their names.
    """

    def __init__(self, folder: Path, bundle: Path, redis_program: str, **settings: Any) -> None:
        self._folder = folder
        self._redis_program = redis_program
        self.queue_name = "faults"
        self.redis_url = f"unix://{folder / 'redis.sock'}"
        self._settings = {
            "redis_url": self.redis_url,
            "bundle": bundle,
            "queue_name": self.queue_name,
            "backend": "fake",
            "lease_s": 1,
            "port": 0,
            **settings,
        }
        self._processes: list[Process] = []
        self.redis: Process | None = None
        self.gateways: dict[str, Process] = {}  # by address
        self.workers: list[Process] = []

    def start_redis(self, *options: str, max_file_bytes: int | None = None) -> Process:
        """Start it, or start it again with the files of the last one; it answers on return."""
        command = [
            self._redis_program, "--port", "0", "--unixsocket", str(self._folder / "redis.sock"),
            "--dir", str(self._folder), "--save", "", "--maxmemory-policy", "noeviction",
            "--logfile", str(self._folder / "redis.log"), *options,
        ]  # fmt: skip
        self.redis = self._keep(
            Process("redis", command, self._folder / "redis.log", max_file_bytes=max_file_bytes)
        )
        self.await_state(self.redis_answers)
        return self.redis

    def start_gateway(self, **settings: Any) -> str:
        """Start a gateway; its address, at which it answers."""
        process = self._start("gateway", settings)
        address = process.first_line()
        assert address.startswith("http://"), f"{process.name} ended"
        self.gateways[address] = process
        return address

    def start_worker(self, **settings: Any) -> Process:
        """Start a worker; `await_ready` tells when it takes jobs."""
        self.workers.append(self._start("worker", settings))
        return self.workers[-1]

    def await_ready(self, address: str, num_workers: int) -> None:
        """Return when a gateway sees so many workers."""

        def ready() -> bool:
            answer = httpx.get(f"{address}/readyz")
            return answer.status_code == 200 and answer.json()["workers"] == num_workers

        self.await_state(ready)

    def await_state(self, reached: Callable[[], bool]) -> None:
        """Wait for it; a refused connection means not yet."""
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            try:
                if reached():
                    return
            except (httpx.TransportError, redis.ConnectionError):
                pass
            time.sleep(_POLL_S)
        raise AssertionError(f"not reached within {START_DEADLINE_S} s")

    def redis_answers(self) -> bool:
        with self.redis_client() as client:
            return bool(client.ping())

    def redis_client(self) -> redis.Redis:
        """For questions and settings; close it after use."""
        return redis.Redis.from_url(self.redis_url)

    @asynccontextmanager
    async def queue(self) -> AsyncIterator[JobQueue]:
        """The queue as another gateway would see it."""
        client = connect(self.redis_url)
        queue = JobQueue(client, name=self.queue_name)
        try:
            yield queue
        finally:
            await queue.close()
            await client.aclose()

    async def await_held_rows(self, number: int) -> None:
        """Return when the workers say that they hold jobs of so many rows."""
        async with self.queue() as queue:
            for _ in range(round(START_DEADLINE_S / _POLL_S)):
                workers = await queue.workers()
                if sum(info["active_rows"] for info in workers.values()) >= number:
                    return
                await asyncio.sleep(_POLL_S)
        raise AssertionError(f"the workers never held {number} rows")

    def close(self) -> None:
        for process in reversed(self._processes):
            process.close()

    def log_tails(self) -> str:
        """The ends of all logs, for a test that fails."""
        tails = []
        for log in sorted({process.log for process in self._processes}):
            text = log.read_text(encoding="utf-8", errors="replace")
            tails.append(f"--- {log.name}\n{text[-_LOG_TAIL_CHARS:]}")
        return "\n".join(tails)

    def _start(self, command: str, settings: dict[str, Any]) -> Process:
        number = sum(process.name.startswith(command) for process in self._processes)
        name = f"{command}-{number}"
        environment = {
            f"RPIAE_{key.upper()}": str(value)
            for key, value in {**self._settings, **settings}.items()
        }
        program = [sys.executable, "-m", "service.cli", command]
        return self._keep(Process(name, program, self._folder / f"{name}.log", environment))

    def _keep(self, process: Process) -> Process:
        self._processes.append(process)
        return process


@asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do this as long as the context lasts; an error of it fails the test."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        if task.done():
            task.result()
        await end_tasks([task])
