"""What the service costs beside the model: images per second, milliseconds, steps.

    python -m benchmarks.serving_efficiency [--pictures 96] [--rounds 5]

1. The same pictures by the engine alone in a loop, and over HTTP from a service that is saturated,
   in turns, with as many rows and one thread for the model, on PyTorch and on onnxruntime. The
   worker has either the loop's core for all it does, or the model alone has it and the worker's
   other threads may go to other cores.
2. The time of a request for which the model does nothing (fake backend, one step).
3. How many steps a job waits for its first one while others run, and how many pass between a
   cancellation and the first step of the job that was waiting for the rows.
Prints a table, writes results/serving_efficiency.json and the section in README.md.
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import statistics
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.backends import exported
from benchmarks.readme import write_report, write_section
from benchmarks.serving_load import GENERATE_ONLY, LoadClient, Planned, plan_requests
from benchmarks.serving_processes import Cores, RunningService, running_service
from benchmarks.serving_waits import STEP_S, measure_overhead, measure_waits
from models.manifest import Manifest, read_manifest
from training.provenance import git_revision, hardware, short_revision, versions

RESULTS = Path(__file__).parent / "results" / "serving_efficiency.json"
MAX_ROWS = 16
# Without a common divisor: pictures of 10, 20 and 30 steps that begin together, as they do in a
# loop that has all of them at once, also end together, again and again, and share calls of prefill
# and decode as pictures that come one by one never do.
STEPS = (9, 14, 19, 23, 31)
RUNTIMES = {"torch": "PyTorch", "onnxruntime": "onnxruntime"}
OFFLINE = "the engine alone, in a loop"
ONE_CORE = "over HTTP, saturated; all of the worker on the loop's core"
ALL_CORES = "over HTTP, saturated; one thread for the model, the worker's others on any core"


class OfflineLoop:
    """The engine in a process of its own, on the worker's core, without queue and HTTP."""

    def __init__(self, bundle: Path, cores: Cores, runtime: str) -> None:
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _load_engine, (bundle, cores.worker, runtime)
        )

    def run(self, plan: Sequence[Planned]) -> float:
        """Seconds from the first picture's start to the last one's end."""
        return self._pool.submit(_run_engine, plan).result()

    def close(self) -> None:
        self._pool.shutdown()


_loaded: dict[str, Any] = {}  # of the offline process


def _load_engine(bundle: Path, cores: frozenset[int], runtime: str) -> None:
    os.sched_setaffinity(0, cores)
    from service.engine.calibration import calibrate
    from service.loading import load_backend
    from service.settings import load_settings

    settings = load_settings(bundle=bundle, backend=runtime, threads=1, max_rows=MAX_ROWS)
    manifest = read_manifest(bundle)
    backend = load_backend(settings, bundle, manifest).backend
    backend.warm_up((1,))
    _loaded["calibration"] = calibrate(backend, max_rows=MAX_ROWS)
    _loaded["backend"], _loaded["manifest"] = backend, manifest


def _run_engine(plan: Sequence[Planned]) -> float:
    from service.engine.engine import Engine
    from service.engine.work import Finished, PictureWork

    manifest = _loaded["manifest"]
    engine = Engine(
        _loaded["backend"], shift=manifest.timestep_shift, calibration=_loaded["calibration"]
    )
    started = time.perf_counter()
    for planned in plan:
        engine.add(
            PictureWork(
                id=str(planned.seed),
                prompt=planned.prompt,
                seed=planned.seed,
                num_steps=planned.steps,
                sampler=manifest.sampler,
                guidance_scale=manifest.default_guidance_scale,
                guidance_interval=manifest.guidance_interval,
            )
        )
    num_finished = 0
    while engine.has_work:
        num_finished += sum(isinstance(event, Finished) for event in engine.tick().events)
    assert num_finished == len(plan)
    return time.perf_counter() - started


async def measure_throughput(
    services: Mapping[str, RunningService],
    offline: OfflineLoop,
    manifest: Manifest,
    pictures: int,
    rounds: int,
) -> dict[str, list[float]]:
    """Images per second of all sides in each round, after one that does not count."""
    source = random.Random(11)
    rates: dict[str, list[float]] = {side: [] for side in (OFFLINE, *services)}
    for number in range(rounds + 1):
        # Other prompts in each round: the service remembers those it has read.
        times = [0.0] * pictures
        plan = plan_requests(times, STEPS, GENERATE_ONLY, source, pictures * number)
        seconds = {OFFLINE: await asyncio.to_thread(offline.run, plan)}
        for side, service in services.items():
            async with LoadClient(service.url, manifest) as client:
                seconds[side] = await client.saturate(plan, at_a_time=4 * MAX_ROWS)
        if number:
            for side, rate in rates.items():
                rate.append(pictures / seconds[side])
            print(", ".join(f"{side} {rate[-1]:.2f}/s" for side, rate in rates.items()), flush=True)
    return rates


def measure_runtime(
    runtime: str, bundle: Path, cores: Cores, pictures: int, rounds: int
) -> dict[str, list[float]]:
    """What `measure_throughput` returns, of one runtime."""
    places = {ONE_CORE: cores, ALL_CORES: Cores(cores.worker | cores.others, cores.others)}
    with ExitStack() as stack:
        offline = OfflineLoop(bundle, cores, runtime)
        stack.callback(offline.close)
        services = {
            side: stack.enter_context(
                running_service(bundle, place, backend=runtime, max_rows=MAX_ROWS)
            )
            for side, place in places.items()
        }
        manifest = read_manifest(bundle)
        return asyncio.run(measure_throughput(services, offline, manifest, pictures, rounds))


def shares(rates: Mapping[str, Sequence[float]], side: str) -> list[float]:
    """A side's rate as a share of the loop's, in each round."""
    return [mine / loop for mine, loop in zip(rates[side], rates[OFFLINE], strict=True)]


def measure(bundle: Path, pictures: int, rounds: int) -> dict[str, Any]:
    """The report of all three parts."""
    manifest, cores = read_manifest(bundle), Cores.split()
    with tempfile.TemporaryDirectory(prefix="rpiae-efficiency-") as folder:
        where = exported(bundle, Path(folder))
        rates = {
            runtime: measure_runtime(runtime, where, cores, pictures, rounds)
            for runtime in RUNTIMES
        }
    with running_service(bundle, cores, backend="fake", max_rows=MAX_ROWS) as service:
        overhead = asyncio.run(measure_overhead(service, manifest))
    with running_service(bundle, cores, backend="fake", fake_step_s=STEP_S, max_rows=3) as service:
        waits = asyncio.run(measure_waits(service, manifest.name))
    return {
        "bundle": manifest.name,
        "revision": git_revision(),
        "hardware": hardware(),
        "cores": cores.describe(),
        "versions": versions(),
        "steps": STEPS,
        "max_rows": MAX_ROWS,
        "step_s": STEP_S,
        "throughput": {"pictures": pictures, "rates": rates},
        "overhead": overhead,
        "waits": waits,
    }


def markdown(report: dict[str, Any]) -> str:
    """What stands in the README."""
    throughput, overhead = report["throughput"], report["overhead"]
    lines = ["| what | measured |", "|---|---|"]
    for runtime, rates in throughput["rates"].items():
        title = RUNTIMES[runtime]
        rate = statistics.median(rates[OFFLINE])
        lines.append(f"| {title}: {OFFLINE} | {rate:.1f} images/s |")
        for side in (ONE_CORE, ALL_CORES):
            share, rate = _spread(shares(rates, side)), statistics.median(rates[side])
            lines.append(f"| {title}: {side} | {rate:.1f} images/s, {share} of the loop |")
    lines += [
        f"| a request for which the model does nothing, median | "
        f"**{overhead['median_ms']:.1f} ms** |",
        f"| its 99th percentile | {overhead['p99_ms']:.1f} ms |",
        f"| of it the client, HTTP and gateway without the queue (`/healthz`), median | "
        f"{overhead['floor_ms']:.1f} ms |",
    ]
    for name, what in (
        ("join_steps", "from arrival to the first step, beside running jobs"),
        ("cancel_steps", "from cancelling a job to the first step of the one that gets its rows"),
    ):
        steps = report["waits"][name]
        lines.append(
            f"| {what}, median and most of {len(steps)} | **{statistics.median(steps):.2f}** and "
            f"{max(steps):.2f} steps |"
        )
    machine = report["hardware"]
    wanted = " or ".join(map(str, report["steps"]))
    num_rounds = len(throughput["rates"]["torch"][OFFLINE])
    text = (
        f"Throughput: {throughput['pictures']} pictures of {wanted} steps with guidance, bundle "
        f"`{report['bundle']}`, at most {report['max_rows']} model rows at a time, "
        f"{num_rounds} rounds in turns, shares as medians (lowest to highest); "
        f"the loop writes no PNG files, the service does. Steps of "
        f"{1000 * report['step_s']:.0f} ms are counted on the fake backend. {report['cores']}; "
        f"{machine['processor']}, torch {report['versions']['torch']}, revision "
        f"`{short_revision(report['revision'])}`."
    )
    return "\n".join(lines) + "\n\n" + textwrap.fill(text, 100, break_on_hyphens=False)


def _spread(values: Sequence[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/stickers"))
    parser.add_argument("--pictures", type=int, default=96, help="of each round and side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    report = measure(arguments.bundle, arguments.pictures, arguments.rounds)
    text = markdown(report)
    print(text)
    write_report(arguments.output, report)
    if arguments.output == RESULTS:
        write_section("serving-efficiency", text)


if __name__ == "__main__":
    main()
