"""Starts what is compared: the service, or one of the other servers from its own environment."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.device import MAX_ROWS, ROW_S, STEP_S, TASK, Start
from benchmarks.peers.tuning import Device, tuned
from benchmarks.serving_processes import Cores, RunningService, running_service
from service.jobs.embedded import bound_to_parent

OURS = "rpiae"
MODULES = {
    "fastapi-lock": "fastapi_lock",
    "fastapi-pool": "fastapi_pool",
    "litserve": "lit_serve",
    "bentoml": "bento",
    "ray-serve": "ray_serve",
}
SERVERS = (OURS, *MODULES)
PYTHON = Path(".venv-peers/bin/python").absolute()
LOGS = Path("runs/benchmarks/serving_peers")
STOP_DEADLINE_S = 2  # some wait for connections that nobody uses any more
_QUIET = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
    # These servers would otherwise report their use to their makers.
    "RAY_USAGE_STATS_ENABLED": "0",
    "BENTOML_DO_NOT_TRACK": "True",
}


@dataclass(frozen=True)
class ProcessTree:
    """Processes and all that they started."""

    roots: Sequence[int]

    def processes(self) -> list[psutil.Process]:
        """Those that run now."""
        found: dict[int, psutil.Process] = {}
        for pid in self.roots:
            with suppress(psutil.NoSuchProcess):
                root = psutil.Process(pid)
                found |= {one.pid: one for one in (root, *root.children(recursive=True))}
        return list(found.values())

    def cpu_s(self) -> float:
        """Seconds of computing time of those that run, since each began."""
        total = 0.0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory_bytes(self) -> int:
        """Memory of all of them, what they share counted once (PSS)."""
        total = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
        return total


@dataclass(frozen=True)
class Server:
    """A server whose processes are started; whether it answers yet is for a client to find out."""

    name: str
    url: str
    tree: ProcessTree
    started: float
    """By time.perf_counter."""


@contextmanager
def running_server(
    name: str, device: Device, bundle: Path, settings: dict[str, Any] | None = None
) -> Iterator[Server]:
    """One of SERVERS for as long as the context lasts, on any core, its model with one thread.

    Args:
        settings: of another server than ours, instead of its tuned ones.

    Raises:
        FileNotFoundError: the other servers are not installed.
    """
    started = time.perf_counter()
    if name == OURS:
        with _service(device, bundle) as service:
            yield Server(name, service.url, ProcessTree(list(service.pids.values())), started)
        return
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    chosen = dict(tuned(name, device) if settings is None else settings)
    by_steps = chosen.pop("by_steps", False)
    start = Start(
        bundle=str(bundle.resolve()), device=device, port=port, settings=chosen, by_steps=by_steps
    )
    with _process(name, start) as process:
        yield Server(name, f"http://127.0.0.1:{port}", ProcessTree([process.pid]), started)


def _service(device: Device, bundle: Path) -> AbstractContextManager[RunningService]:
    """Ours: gateway, worker and Redis, a process each."""
    cores = frozenset(os.sched_getaffinity(0))
    program: tuple[str, ...] = ("-m", "service.cli", "worker")
    if device != "cpu":
        step_s, row_s = (STEP_S, ROW_S) if device == "emulated" else (0.0, 0.0)
        program = ("-m", "benchmarks.serving_worker")
        program += ("--step-s", str(step_s), "--row-s", str(row_s))
    return running_service(
        bundle, Cores(cores, cores), worker_program=program, backend="torch", max_rows=MAX_ROWS
    )


@contextmanager
def _process(name: str, start: Start) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is not ours; none of its processes survives the context."""
    if not PYTHON.exists():
        raise FileNotFoundError(f"{PYTHON} is missing: install the other servers by `make peers`")
    LOGS.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="peer-")  # short: Ray puts sockets into it
    command = [str(PYTHON), "-m", f"benchmarks.peers.{MODULES[name]}"]
    environment = {
        **os.environ,
        **_QUIET,
        TASK: json.dumps(vars(start)),
        "RAY_TMPDIR": scratch,
        "BENTOML_HOME": scratch,
    }
    with (LOGS / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            bound_to_parent(command), env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            _stop(process)
            shutil.rmtree(scratch, ignore_errors=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    family = ProcessTree([process.pid]).processes()
    process.terminate()
    _, left = psutil.wait_procs(family, STOP_DEADLINE_S)
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
