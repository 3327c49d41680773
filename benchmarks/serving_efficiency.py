"""What the service costs beside the model: images per second, milliseconds, steps.

    python -m benchmarks.serving_efficiency [--pictures 96] [--rounds 5]

1. The same pictures by the engine alone in a loop, and over HTTP from a service that is saturated,
   in turns, with as many rows and one thread for the model. The worker has either the loop's core
   for all it does, or the model alone has it and the worker's other threads may go to other cores.
   Cores that share hardware slow each other, and the service needs one beside the model's; so the
   loop also runs while a service whose model does nothing keeps that one as busy.
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
import textwrap
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.readme import write_report, write_section
from benchmarks.serving_load import GENERATE_ONLY, LoadClient, Planned, plan_requests
from benchmarks.serving_processes import Cores, RunningService, running_service
from benchmarks.serving_waits import STEP_S, measure_overhead, measure_waits
from models.manifest import Manifest, read_manifest
from training.provenance import git_revision, hardware, short_revision, versions

RESULTS = Path(__file__).parent / "results" / "serving_efficiency.json"
MAX_ROWS = 16
STEPS = (10, 20, 30)
OFFLINE = "the engine alone, in a loop"
BESIDE = "the same loop, while a service without a model keeps the other core busy"
NULL_STEP_S = 0.012  # with which that service, too, answers some 20 pictures in a second
SETTLE_S = 0.5
ONE_CORE = "over HTTP, saturated; all of the worker on the loop's core"
ALL_CORES = "over HTTP, saturated; one thread for the model, the worker's others on any core"


class OfflineLoop:
    """The engine in a process of its own, on the worker's core, without queue and HTTP."""

    def __init__(self, bundle: Path, cores: Cores) -> None:
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _load_engine, (bundle, cores.worker)
        )

    def run(self, plan: Sequence[Planned]) -> float:
        """Seconds from the first picture's start to the last one's end."""
        return self._pool.submit(_run_engine, plan).result()

    def close(self) -> None:
        self._pool.shutdown()


_loaded: dict[str, Any] = {}  # of the offline process


def _load_engine(bundle: Path, cores: frozenset[int]) -> None:
    os.sched_setaffinity(0, cores)
    from service.backends.torch_backend import TorchBackend
    from service.engine.calibration import calibrate

    backend = TorchBackend.load(bundle, threads=1, max_rows=MAX_ROWS)
    backend.warm_up((1,))
    _loaded["calibration"] = calibrate(backend, max_rows=MAX_ROWS)
    _loaded["backend"], _loaded["manifest"] = backend, read_manifest(bundle)


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
    null: RunningService,
    offline: OfflineLoop,
    manifest: Manifest,
    pictures: int,
    rounds: int,
) -> dict[str, Any]:
    """Images per second of all sides in each round, after one that does not count."""
    source = random.Random(11)
    rates: dict[str, list[float]] = {side: [] for side in (OFFLINE, BESIDE, *services)}
    for number in range(rounds + 1):
        # Other prompts in each round: the service remembers those it has read.
        times = [0.0] * pictures
        plan = plan_requests(times, STEPS, GENERATE_ONLY, source, pictures * number)
        seconds = {OFFLINE: await asyncio.to_thread(offline.run, plan)}
        neighbour = asyncio.create_task(_keep_busy(null, manifest))
        await asyncio.sleep(SETTLE_S)
        seconds[BESIDE] = await asyncio.to_thread(offline.run, plan)
        neighbour.cancel()
        await asyncio.wait([neighbour])
        for side, service in services.items():
            async with LoadClient(service.url, manifest) as client:
                seconds[side] = await client.saturate(plan, at_a_time=4 * MAX_ROWS)
        if number:
            for side, rate in rates.items():
                rate.append(pictures / seconds[side])
            print(", ".join(f"{side} {rate[-1]:.2f}/s" for side, rate in rates.items()), flush=True)
    return {"pictures": pictures, "rates": rates}


async def _keep_busy(service: RunningService, manifest: Manifest) -> None:
    """Saturate a service until this is cancelled."""
    plan = plan_requests([0.0] * 2 * MAX_ROWS, STEPS, GENERATE_ONLY, random.Random(12))
    async with LoadClient(service.url, manifest) as client:
        while True:
            await client.saturate(plan, at_a_time=4 * MAX_ROWS)


def ratios(rates: Mapping[str, Sequence[float]], side: str, loop: str) -> list[float]:
    """A side's rate as a share of a loop's, in each round."""
    return [mine / other for mine, other in zip(rates[side], rates[loop], strict=True)]


def measure(bundle: Path, pictures: int, rounds: int) -> dict[str, Any]:
    """The report of all three parts."""
    manifest, cores = read_manifest(bundle), Cores.split()
    offline = OfflineLoop(bundle, cores)
    places = {ONE_CORE: cores, ALL_CORES: Cores(cores.worker | cores.others, cores.others)}
    with ExitStack() as stack:
        stack.callback(offline.close)
        services = {
            side: stack.enter_context(running_service(bundle, place, max_rows=MAX_ROWS))
            for side, place in places.items()
        }
        beside = Cores(cores.others, cores.others)
        null = stack.enter_context(
            running_service(
                bundle, beside, backend="fake", fake_step_s=NULL_STEP_S, max_rows=MAX_ROWS
            )
        )
        throughput = asyncio.run(
            measure_throughput(services, null, offline, manifest, pictures, rounds)
        )
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
        "throughput": throughput,
        "overhead": overhead,
        "waits": waits,
    }


def markdown(report: dict[str, Any]) -> str:
    """What stands in the README."""
    throughput, overhead = report["throughput"], report["overhead"]
    rates = throughput["rates"]
    lines = [
        "| what | measured |",
        "|---|---|",
        f"| {OFFLINE} | {statistics.median(rates[OFFLINE]):.1f} images/s |",
    ]
    for side in (BESIDE, ONE_CORE, ALL_CORES):
        shares = f"{_spread(ratios(rates, side, OFFLINE))} of the loop"
        if side != BESIDE:
            shares += f", {_spread(ratios(rates, side, BESIDE))} of the loop beside a busy core"
        lines.append(f"| {side} | {statistics.median(rates[side]):.1f} images/s, {shares} |")
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
    text = (
        f"Throughput: {throughput['pictures']} pictures of {wanted} steps with guidance, bundle "
        f"`{report['bundle']}`, at most {report['max_rows']} model rows at a time, "
        f"{len(rates[OFFLINE])} rounds in turns, shares as medians (lowest to highest); "
        f"the loop writes no PNG files, the service does. Steps of "
        f"{1000 * report['step_s']:.0f} ms are counted on the fake backend. {report['cores']}; "
        f"{machine['processor']}, torch {report['versions']['torch']}, revision "
        f"`{short_revision(report['revision'])}`."
    )
    return "\n".join(lines) + "\n\n" + textwrap.fill(text, 100, break_on_hyphens=False)


def _spread(shares: Sequence[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


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
